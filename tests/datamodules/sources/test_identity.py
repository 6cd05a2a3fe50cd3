"""What a run knows its data by: every change of them is seen, another folder and other times are not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules import (
    ConversationRecords,
    FolderRecords,
    HuggingFaceConversations,
    HuggingFaceRecords,
    HuggingFaceStream,
    IdxRecords,
    LabelledQuestions,
    MixedRecords,
    ParquetRecords,
    StreamingImageDataModule,
    TarRecords,
    TarStream,
)
from datamodules.sources.identity import Part, identity_of
from datamodules.sources.records import Records
from tests.tiny_files import png, write_files, write_idx, write_tar

TOTAL = 40  # records; the eight that are decoded are 0, 5, 11, 16, 22, 27, 33 and 39
CHANGED = 3
Content = dict[str, Any]


def content() -> Content:
    """Pictures, captions and labels of equal lengths."""
    return {
        "pictures": [bmp(number) for number in range(TOTAL)],
        "captions": [f"text {number:02d}" for number in range(TOTAL)],
        "labels": [number % 3 for number in range(TOTAL)],
    }


def bmp(value: int) -> bytes:
    """An image without checksum or compression, so that one value changes one byte."""
    import io

    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "bmp")
    return buffer.getvalue()


CHANGES: dict[str, Callable[[list[Any]], None]] = {
    "pictures": lambda pictures: pictures.__setitem__(CHANGED, bmp(200)),
    "captions": lambda captions: captions.__setitem__(CHANGED, "text XX"),
    "labels": lambda labels: labels.__setitem__(CHANGED, 2),
}


def folder(root: Path, data: Content) -> Records:
    for number, (picture, caption, label) in enumerate(zip(*data.values(), strict=True)):
        write_files(root, {f"{'abc'[label]}/{number:02d}.bmp": picture, f"{'abc'[label]}/{number:02d}.txt": caption})
    return FolderRecords(root)


def table(root: Path, data: Content, *, name: str) -> Records:
    rows = [(f"{n:02d}.bmp", *rest) for n, rest in enumerate(zip(data["captions"], data["labels"], strict=True))]
    text = "file_name,text,label\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    if name.endswith("jsonl"):
        text = "".join(json.dumps({"file_name": a, "text": b, "label": c}) + "\n" for a, b, c in rows)
    write_files(root, {f"{number:02d}.bmp": picture for number, picture in enumerate(data["pictures"])} | {name: text})
    return FolderRecords(root)


def shards(root: Path, data: Content, *, stream: bool) -> Records:
    rows = list(enumerate(zip(*data.values(), strict=True)))
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number, (picture, caption, label) in rows[shard::2]:
            members |= {f"{number}.bmp": picture, f"{number}.txt": caption.encode(), f"{number}.cls": b"%d" % label}
        write_tar(root / f"{shard}.tar", members)
    return (TarStream if stream else TarRecords)(str(root / "*.tar"), caption="txt", label="cls")


def parquet(root: Path, data: Content, *, stream: bool) -> Records:
    pictures = [{"bytes": picture, "path": None} for picture in data["pictures"]]
    rows = pa.table({"image": pictures, "text": data["captions"], "label": data["labels"]})
    pq.write_table(rows, root / "0.parquet")
    columns: dict[str, Any] = {"caption_column": "text", "label_column": "label"}
    if stream:
        return HuggingFaceStream("parquet", str(root / "0.parquet"), **columns)
    return ParquetRecords(str(root / "0.parquet"), **columns)


def saved(root: Path, data: Content) -> Records:
    pictures = [{"bytes": picture, "path": None} for picture in data["pictures"]]
    rows = datasets.Dataset.from_dict({"image": pictures, "text": data["captions"], "label": data["labels"]})
    rows.cast_column("image", datasets.Image()).save_to_disk(str(root / "set"))
    return HuggingFaceRecords(str(root / "set"), caption_column="text", label_column="label")


def chats(root: Path, data: Content) -> Records:
    rows = [
        {"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": f"{caption} {label}"}]}
        | {"images": [{"bytes": picture, "path": None}]}
        for picture, caption, label in zip(*data.values(), strict=True)
    ]
    set_ = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    set_.save_to_disk(str(root / "set"))
    return HuggingFaceConversations(str(root / "set"))


def idx(root: Path, data: Content) -> Records:
    pictures = np.stack([np.frombuffer(picture[-16:], dtype=np.uint8).reshape(4, 4) for picture in data["pictures"]])
    write_idx(root / "images", pictures), write_idx(root / "labels", np.array(data["labels"], dtype=np.uint8))
    return IdxRecords(root / "images", root / "labels")


def talks(root: Path, data: Content) -> Records:
    write_files(root / "pictures", {f"{number}.bmp": picture for number, picture in enumerate(data["pictures"])})
    entries = [
        {"image": f"{n}.bmp", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}
        for n, text in enumerate(f"{a} {b}" for a, b in zip(data["captions"], data["labels"], strict=True))
    ]
    (root / "talks.json").write_text(json.dumps(entries))
    return ConversationRecords(root / "talks.json", root / "pictures")


SOURCES: dict[str, Callable[[Path, Content], Records]] = {
    "folder": folder,
    "csv": lambda root, data: table(root, data, name="metadata.csv"),
    "jsonl": lambda root, data: table(root, data, name="metadata.jsonl"),
    "tar": lambda root, data: shards(root, data, stream=False),
    "tar stream": lambda root, data: shards(root, data, stream=True),
    "parquet": lambda root, data: parquet(root, data, stream=False),
    "parquet stream": lambda root, data: parquet(root, data, stream=True),
    "saved": saved,
    "chats": chats,
    "idx": idx,
    "talks": talks,
    "questions": lambda root, data: LabelledQuestions(folder(root, data)),  # type: ignore[arg-type]
    "mixed": lambda root, data: MixedRecords([folder(root, data)]),  # type: ignore[list-item]
}


def facts(make: Callable[[Path, Content], Records], root: Path, data: Content) -> dict[str, Any]:
    root.mkdir(parents=True)
    source = make(root, data)
    source.open()
    return {fact: value for fact, value in identity_of(source).items() if fact in ("records", "content")}


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", SOURCES)
def test_every_change_is_seen_and_a_copy_is_the_same(tmp_path: Path, kind: str) -> None:
    make = SOURCES[kind]
    first = facts(make, tmp_path / "first", content())
    for path in (tmp_path / "first").rglob("*"):
        os.utime(path, (1, 1))
    assert facts(make, tmp_path / "elsewhere" / "copy", content()) == first
    for field, change in CHANGES.items():
        data = content()
        change(data[field])
        if (kind, field) != ("idx", "captions"):
            assert facts(make, tmp_path / field, data) != first, field
    short = {field: values[:-1] for field, values in content().items()}
    assert facts(make, tmp_path / "short", short) != first


def test_files_that_are_no_part_of_a_record_do_not_count(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {"0.png": png(1), "1.png": b"no picture", "README.md": "one"})
    write_files(tmp_path / "b", {"0.png": png(1), "1.png": b"no picture", "README.md": "two", ".hidden": "x"})
    write_tar(tmp_path / "a.tar", {"0.png": png(1), "0.json": b"1"}), write_tar(tmp_path / "b.tar", {"0.png": png(1)})
    one, other = (FolderRecords(tmp_path / name, class_folders=False) for name in "ab")
    assert identity_of(one) == identity_of(other)
    shutil.copy(tmp_path / "b.tar", tmp_path / "b"), (tmp_path / "b" / "b.tar").rename(tmp_path / "b" / "a.tar")
    assert identity_of(TarRecords(str(tmp_path / "a.tar"))) == identity_of(TarRecords(str(tmp_path / "b" / "a.tar")))


def test_data_too_large_to_be_read_whole_are_told_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.sources.identity.WHOLE", 1 << 18)
    size = 1 << 20
    (tmp_path / "0.png").write_bytes(bytes(size))
    part = Part.of_file(tmp_path / "0.png", name="0.png")
    first = part.digest(0.25)
    assert part.digest(0.25) == first != part.digest(0.26)
    seen = 0
    places = range(0, size, 10007)
    for place in places:
        content = bytearray(size)
        content[place] = 1
        (tmp_path / "0.png").write_bytes(content)
        seen += part.digest(0.25) != first
    assert 0.15 < seen / len(places) < 0.35, "a quarter is read"
    for place in (0, size - 1):
        content = bytearray(size)
        content[place] = 1
        (tmp_path / "0.png").write_bytes(content)
        assert part.digest(0.25) != first
    source = FolderRecords(tmp_path, class_folders=False)
    os.utime(tmp_path / "0.png", (5, 5))
    assert identity_of(source)["changed"] == 5_000_000_000
    monkeypatch.undo()
    assert "changed" not in identity_of(source)


def test_files_that_vanish_while_they_are_read_end_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": png(1), "1.png": png(2)})
    source = FolderRecords(tmp_path, class_folders=False)
    before = identity_of(source)
    (tmp_path / "1.png").unlink()
    assert identity_of(source)["content"] != before["content"]
    assert Part.of_file(tmp_path, name="a folder").size == -1
    assert len(Part("", 10, tmp_path / "gone").digest(1.0)) > 0


def test_streams_are_known_by_their_files(tmp_path: Path) -> None:
    shards(tmp_path, content(), stream=True)
    data = StreamingImageDataModule(TarStream(str(tmp_path / "*.tar"), label="cls"), image_size=4)
    assert data.identity() is None
    data.setup("fit")
    assert set(data.identity() or {}) == {"content"}
