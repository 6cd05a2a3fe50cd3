"""Files of data: which are found, which are left aside, and that none vanishes without a word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from datamodules import CorruptRecord, FolderRecords, ImageDataModule, ParquetRecords, TarRecords
from datamodules.sources.decoding import IMAGE_FORMATS, IMAGE_SUFFIXES
from datamodules.sources.files import FolderFiles
from sparsight.common.disk.inputs import expand_braces, find_files
from tests.tiny_files import png, write_files, write_parquet, write_shard, write_tar

BRACES = {
    "train-{000000..000002}.tar": ["train-000000.tar", "train-000001.tar", "train-000002.tar"],
    "{a,b}{1..3}": ["a1", "a2", "a3", "b1", "b2", "b3"],
    "{a,{1..3}x,}": ["a", "1x", "2x", "3x", ""],
    "{08..11}": ["08", "09", "10", "11"],
    "{0..10..5}{3..1}": ["03", "02", "01", "53", "52", "51", "103", "102", "101"],
    "{a..c}{-1..0}": ["a-1", "a0", "b-1", "b0", "c-1", "c0"],
    "{x}{,b}{": ["{x}{", "{x}b{"],
    "{{1,2}": ["{1", "{2"],
}


@pytest.mark.parametrize("pattern", BRACES)
def test_braces_stand_for_what_they_do_in_bash(pattern: str) -> None:
    assert list(expand_braces(pattern)) == BRACES[pattern]


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{1..9}" * 12])
def test_braces_for_too_many_names_are_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.common.disk.inputs.MAX_FILES", 1000)
    with pytest.raises(ValueError, match="stands for more than 1000 files"):
        list(expand_braces(pattern))


ODD_NAMES = ("[v1] data/a.tar", "data {1..2}/b.tar", "50%20 * off?/~x.tar", "~nobody.tar", "cafe\u0301/c.tar")


def test_names_are_taken_as_they_are_before_they_are_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ODD_NAMES, "v data/a.tar", "[v1] data/__MACOSX/a.tar", "[v1] data/._a.tar"):
        write_files(tmp_path, {name: b"x"})
    monkeypatch.chdir(tmp_path)
    os.symlink(".", "[v1] data/circle")
    for name in ODD_NAMES:
        assert find_files(name, what="files") == [Path(name)]
        assert tmp_path / name in find_files(f"{tmp_path}/{Path(name).parent}/*.tar", what="files")
    assert find_files("caf\u00e9/c.tar", what="files") == [Path(ODD_NAMES[4])]
    assert find_files("[v1] data/**/*.tar", what="files") == [Path(ODD_NAMES[0])]
    assert find_files("[uv] data/a.tar", what="files") == [Path("v data/a.tar")]
    with pytest.raises(FileNotFoundError, match=r"files: there is no file gone/\{a\}"):
        find_files(["v data/a.tar", "gone/{a}"], what="files")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("folder", ["[v1] data", "a*b", "50%20?"])
def test_sources_read_files_of_odd_names(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    write_shard(tmp_path / folder / "0.tar", 0, 2), write_parquet(tmp_path / folder / "0.parquet", 0, 2)
    assert len(TarRecords(f"{tmp_path}/{folder}/{{0..0}}.tar")) == 2
    assert len(ParquetRecords(f"{tmp_path}/{folder}/0.parquet")) == 2


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/cat/._0.png", "cat/.thumb/0.png", "@eaDir/0.png", "cat/._0.png"):
        write_files(tmp_path, {name: png()})
    write_files(tmp_path, {"cat/0.png": png(), "dog/0.png": png(), "cat/Thumbs.db": b"x", "dog/desktop.ini": b"x"})
    write_files(tmp_path, {"lost+found/0.png": png(), ".DS_Store": b"x", "README.md": b"x", "cat/LICENSE": b"x"})
    source = FolderRecords(tmp_path)
    assert len(source) == 2 and source.classes == ["cat", "dog"] and source.unused == []


def test_links_are_followed_inside_the_folder_and_not_in_circles(tmp_path: Path) -> None:
    write_files(tmp_path, {"root/cat/0.png": png(), "root/store/1.png": png(), "other/2.png": png()})
    root = tmp_path / "root"
    for link, target in {"dog": "store", "cat/up": "..", "self": ".", "loop": "loop", "cat/gone.png": "gone"}.items():
        os.symlink(target, root / link)
    os.mkfifo(root / "cat/pipe.png")
    os.symlink(root, tmp_path / "linked")
    for folder in (root, tmp_path / "linked"):
        files = FolderFiles(folder)
        assert files.names == ["cat/0.png", "dog/1.png", "store/1.png"]
        assert sorted(files.skipped) == ["cat/gone.png", "cat/pipe.png", "cat/up", "loop", "self"]
    os.symlink(tmp_path / "other", root / "cat/out")
    with pytest.raises(ValueError, match="leads to 'cat/out', outside"):
        FolderFiles(root)
    assert "cat/out" in FolderFiles(root, refuse_outside=False).skipped


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".Jpeg", ".PNG", ".webp", ".tif", ".bmp", ".gif", ".pbm"])
def test_pictures_of_all_usual_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    kinds = Image.registered_extensions()
    assert suffix.lower() in IMAGE_SUFFIXES and kinds[suffix.lower()] in IMAGE_FORMATS
    (tmp_path / "cat").mkdir()
    mode = "1" if suffix == ".pbm" else "L"
    Image.new(mode, (4, 4)).save(tmp_path / "cat" / f"0{suffix}", kinds[suffix.lower()])
    source = FolderRecords(tmp_path)
    assert source[0].needed_image.size == (4, 4) and source.classes == ["cat"]


def test_files_that_are_not_used_are_told_and_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files: dict[str, bytes | str] = {f"cat/{number}.png": png() for number in range(9)}
    root = write_files(tmp_path, {**files, "cat/9.heic": b"x", "notes.csv": b"x", "cat/0.json": b"x"})
    FolderRecords(root).open()
    assert "FolderRecords: 2 files are not used: cat/9.heic, notes.csv" in caplog.text
    with pytest.raises(ValueError, match=r"2 files are not used: cat/9\.heic.* more than allowed\.unused_share=0\.1"):
        ImageDataModule(FolderRecords(root), image_size=4, batch_size=1).setup("fit")
    ImageDataModule(FolderRecords(root), image_size=4, batch_size=1, allowed={"unused_share": 0.2}).setup("fit")
    write_files(root, {"dog/0.heic": b"x"})
    with pytest.raises(ValueError, match=r"folder 'dog' of .* holds 'dog/0\.heic' but no picture"):
        FolderRecords(root).open()
    assert len(FolderRecords(root, classes=["cat"])) == 9


@pytest.mark.parametrize("inside", ["", "README.md", "sub/.hidden"])
def test_an_empty_class_folder_does_not_renumber_the_others(tmp_path: Path, inside: str) -> None:
    root = write_files(tmp_path, {"bird/0.png": png(), "dog/0.png": png()})
    (root / "cat").mkdir()
    if inside:
        write_files(root, {f"cat/{inside}": b"x"})
    with pytest.raises(ValueError, match=r"folder 'cat' of .* holds no picture"):
        FolderRecords(root).open()
    named = FolderRecords(root, classes=["bird", "cat", "dog"])
    assert [named.label_of(index) for index in range(len(named))] == [0, 2]


def test_pictures_that_no_row_names_are_told(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{number}.png": png() for number in range(4)})
    write_files(tmp_path, {"metadata.csv": "file_name,text\n0.png,a\n./1.png,b\n2.png,a, b\n"})
    source = FolderRecords(tmp_path)
    assert len(source) == 3 and source.unused == ["3.png"]


# ---------------------------------------------------------------------------------------------------------------- tar
def test_pictures_that_the_rule_of_keys_would_merge_are_never_lost_in_silence(tmp_path: Path) -> None:
    plain = {f"{number:03}.{part}": png() if part == "png" else b"c" for number in range(8) for part in ("png", "txt")}
    dots = {f"take 2.{name}": content for name, content in plain.items()}
    source = TarRecords(str(write_tar(tmp_path / "dots.tar", plain | dots)), caption="txt")
    assert len(source) == 9 and len(source.unused) == 7
    with pytest.raises(CorruptRecord, match=r"take 2\.001\.png' and others have one key; the key is"):
        source[8]
    with pytest.raises(ValueError, match=r"7 files are not used: dots\.tar/take 2\.001\.png.* allowed.unused_share"):
        ImageDataModule(source, image_size=4, batch_size=1).setup("fit")
    folders = {f"{folder}/0.{part}": png() if part == "png" else b"c" for folder in "ab" for part in ("png", "txt")}
    assert len(TarRecords(str(write_tar(tmp_path / "two.tar", folders)), caption="txt")) == 2


def test_a_name_that_is_twice_in_a_shard_replaces_nothing(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, content in [("0.png", png(1)), ("0.txt", b"one"), ("0.png", png(2)), ("0.txt", b"two")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    source = TarRecords(str(tmp_path / "a.tar"), caption="txt")
    assert len(source) == 1 and source.unused == ["a.tar/0.png"]
    with pytest.raises(CorruptRecord, match=r"member '0\..*' is there twice"):
        source.caption_of(0)


def test_members_of_no_record_are_told_and_companions_are_not(tmp_path: Path) -> None:
    members = {"0.png": png(), "0.seg.png": png(), "0.json": b"{}", "noname": b"x", "README.md": b"x"}
    members |= {"__MACOSX/0.png": b"x", "1.png": png(3)}
    source = TarRecords(str(write_tar(tmp_path / "a.tar", members)))
    assert len(source) == 2 and sorted(source.unused) == ["a.tar/0.seg.png", "a.tar/noname"]


def test_patterns_with_names_that_are_too_long_find_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError):
        find_files(f"{tmp_path}/*/{'x' * 300}/*", what="files")
