"""Tar shards and parquet files: what is read, and what harm a bad file cannot do."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import CorruptRecord, ImageDataModule, ParquetRecords, TarRecords
from datamodules.sources.tar_parts.members import DamagedShard, members_of
from tests.tiny_files import png, write_parquet, write_shard, write_tar


def test_members_of_a_key_are_one_record(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", 3, 2), write_shard(tmp_path / "a.tar", 0, 3)
    source = TarRecords(str(tmp_path / "*.tar"), caption="txt", label="cls", classes=["x", "y", "z"])
    records = [source[index] for index in range(len(source))]
    assert [record.image.getpixel((0, 0)) for record in records] == [0, 1, 2, 3, 4]
    assert [record.caption for record in records] == [f"picture {number}" for number in range(5)]
    assert [record.label for record in records] == [0, 1, 2, 0, 1] and source.classes == ["x", "y", "z"]
    assert records[3].id == "b.tar/0003" and source.size(3) == (4, 4)
    from_json = TarRecords([str(tmp_path / "b.tar")], caption="json.text", label="json.kind", classes=["a", "b"])
    assert [(from_json[i].caption, from_json[i].label) for i in range(2)] == [("json 3", 1), ("json 4", 0)]


def test_records_that_cannot_be_read_are_corrupt_and_the_others_are_not(tmp_path: Path) -> None:
    members = {
        "0.png": png(7), "0.txt": b"fine", "0.cls": b"1",
        "1.txt": b"no picture", "1.cls": b"1",
        "2.png": png(1)[:40], "2.txt": b"torn", "2.cls": b"1",
        "3.png": png(1), "3.cls": b"1",
        "4.png": png(1), "4.txt": b"\xff", "4.cls": b"1",
        "5.png": png(1), "5.txt": b"x", "5.cls": b"two",
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = TarRecords(str(tmp_path / "a.tar"), caption="txt", label="cls")
    assert source[0].caption == "fine" and source[0].label == 1
    reasons = {
        1: "no picture among",
        2: r"member a\.tar/2\.png: no picture of a known format",
        3: "no part 'txt'",
        4: "txt: byte 0xff in .* is not UTF-8",
        5: "label 'two'",
    }
    for index, reason in reasons.items():
        with pytest.raises(CorruptRecord, match=reason):
            source[index]
    with pytest.raises(CorruptRecord, match="label '7' is neither"):
        write_tar(tmp_path / "b.tar", {"0.png": png(0), "0.cls": b"7"})
        TarRecords(str(tmp_path / "b.tar"), label="cls", classes=["a"])[0]
    with pytest.raises(CorruptRecord, match="KeyError: 'title'"):
        write_tar(tmp_path / "c.tar", {"0.png": png(0), "0.json": b"{}"})
        TarRecords(str(tmp_path / "c.tar"), caption="json.title")[0]
    with pytest.raises(CorruptRecord, match=r"json\.t holds nothing"):
        write_tar(tmp_path / "d.tar", {"0.png": png(0), "0.json": b'{"t": null}'})
        TarRecords(str(tmp_path / "d.tar"), caption="json.t")[0]


def test_links_devices_and_paths_that_lead_elsewhere_are_names_at_most(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, kind, target in (
            ("0.png", tarfile.SYMTYPE, str(secret)),
            ("1.png", tarfile.LNKTYPE, str(secret)),
            ("2.png", tarfile.CHRTYPE, ""),
            (str(secret), tarfile.REGTYPE, ""),
            ("../secret.png", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, content = kind, target, png(5) if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    source = TarRecords(str(tmp_path / "a.tar"))
    assert [source[index].image.getpixel((0, 0)) for index in range(len(source))] == [5, 5]
    assert secret.read_bytes() == png(99)


@pytest.mark.parametrize("damage", ["header", "cut in a member", "cut between members", "no tar", "empty", "gzip"])
def test_a_damaged_shard_is_found_when_it_is_opened(tmp_path: Path, damage: str) -> None:
    path = write_shard(tmp_path / "a.tar", 0, 3)
    content = bytearray(path.read_bytes())
    second = next(m for n, m in enumerate(members_of(path)) if n == 1).parts["png"][0] - tarfile.BLOCKSIZE
    if damage == "header":
        content[second + 100] ^= 255
    cut = {"cut in a member": second + 600, "cut between members": second, "empty": 0}.get(damage, len(content))
    content = bytearray(b"junk" * 999) if damage == "no tar" else content[:cut]
    if damage == "gzip":
        import gzip

        content = bytearray(gzip.compress(content))
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match=r"a\.tar is damaged.*fetch it again"):
        TarRecords(str(path)).open()


def test_a_member_that_claims_too_much_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TarRecords(str(write_shard(tmp_path / "a.tar", 0, 2)))
    source.open()
    monkeypatch.setattr("datamodules.sources.tar_parts.members.MAX_BYTES", 8)
    with pytest.raises(CorruptRecord, match=r"0000\.png of \d+ bytes is larger than 8"):
        source[0]
    monkeypatch.undo()
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:600])  # cut after it was opened
    with pytest.raises(CorruptRecord, match="cut off"):
        source[1]


def test_fingerprints_follow_the_files(tmp_path: Path) -> None:
    def tar() -> str:
        return TarRecords(str(tmp_path / "*.tar"), caption="txt").fingerprint()

    write_shard(tmp_path / "a.tar", 0, 2)
    before = tar()
    assert tar() == before != TarRecords(str(tmp_path / "*.tar")).fingerprint()
    write_shard(tmp_path / "a.tar", 2, 2)
    assert tar() != before
    with pytest.raises(FileNotFoundError, match=r"files: there is no file .*gone\*\.tar"):
        TarRecords(str(tmp_path / "gone*.tar")).open()


# ------------------------------------------------------------------------------------------------------------ parquet
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("plain", [True, False])
def test_parquet_files_give_records(tmp_path: Path, plain: bool) -> None:
    write_parquet(tmp_path / "1.parquet", 2, 2, plain=plain), write_parquet(tmp_path / "0.parquet", 0, 2, plain=plain)
    source = ParquetRecords(str(tmp_path / "*.parquet"), caption_column="text", label_column="kind")
    records = [source[index] for index in range(len(source))]
    assert [record.image.getpixel((0, 0)) for record in records] == [0, 1, 2, 3]
    assert [record.caption for record in records] == [f"picture {number}" for number in range(4)]
    assert [record.label for record in records] == [1, 0, 1, 0] and source.classes == ["a", "b"]
    assert source.size(0) == (4, 6)
    before = source.fingerprint()
    write_parquet(tmp_path / "0.parquet", 5, 2, plain=plain)
    assert ParquetRecords(str(tmp_path / "*.parquet"), caption_column="text").fingerprint() != before


@pytest.mark.usefixtures("own_cache")
def test_parquet_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ParquetRecords(str(tmp_path / "*.parquet")).open()
    (tmp_path / "junk.parquet").write_bytes(b"junk" * 99)
    with pytest.raises(ValueError, match=r"junk\.parquet cannot be read as parquet"):
        ParquetRecords(str(tmp_path / "junk.parquet")).open()
    write_parquet(tmp_path / "a.parquet", 0, 2)
    with pytest.raises(ValueError, match="image_column is 'picture', which data set"):
        ParquetRecords(str(tmp_path / "a.parquet"), image_column="picture").open()
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    pq.write_table(pa.table({"image": [{"bytes": None, "path": str(secret)}]}), tmp_path / "b.parquet")
    with pytest.raises(CorruptRecord, match="lies outside the data set"):
        ParquetRecords(str(tmp_path / "b.parquet"))[0]


@pytest.mark.parametrize("kind", ["a header of zeros", "joined", "garbage behind the end"])
def test_records_behind_the_end_of_a_shard_do_not_vanish(tmp_path: Path, kind: str) -> None:
    path = write_shard(tmp_path / "a.tar", 0, 4)
    data = bytearray(path.read_bytes())
    if kind == "a header of zeros":
        with tarfile.open(path) as shard:
            start = shard.getmembers()[3].offset
        data[start : start + 512] = bytes(512)
    path.write_bytes(data + (data if kind == "joined" else b"x" if kind.startswith("garbage") else b""))
    with pytest.raises(DamagedShard, match=r"a\.tar goes on behind the mark of its end at byte \d+"):
        TarRecords(str(path)).open()


def test_unusable_records_are_named_by_their_place(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x/1.png": png(1), "x/2.png": b"torn"})
    dataset = ImageDataModule(
        TarRecords(str(path)), image_size=4, batch_size=1, transform={"channels": 1}, allowed={"corrupt_share": 0.5}
    )
    dataset.setup("fit")
    assert dataset.datasets["train"][1]["corrupt"][1].startswith(f"record x/2 of {path}: ")
