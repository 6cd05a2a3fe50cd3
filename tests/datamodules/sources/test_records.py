"""Record sources: what they read, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from datamodules import CorruptRecord, FolderRecords, HuggingFaceRecords, IdxRecords
from tests.tiny_files import png, write_files, write_idx

IMAGES = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)
LABELS = np.array([2, 0, 1], dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------------- idx
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_gives_pixels_and_labels(tmp_path: Path, suffix: str) -> None:
    source = IdxRecords(
        write_idx(tmp_path / f"images{suffix}", IMAGES), write_idx(tmp_path / f"labels{suffix}", LABELS), list("abc")
    )
    assert len(source) == 3 and source.classes == ["a", "b", "c"]
    assert np.array_equal(np.asarray(source[2].image), IMAGES[2])
    assert [source[i].label for i in range(3)] == [2, 0, 1] and source[1].id == "1"


@pytest.mark.parametrize(
    ("length", "message"), [(59, "has 59 bytes of data .* needs 60 bytes"), (61, "has more of data .* needs 60 bytes")]
)
def test_idx_of_the_wrong_length_is_refused(tmp_path: Path, length: int, message: str) -> None:
    path = write_idx(tmp_path / "images", IMAGES, payload=bytes(length))
    with pytest.raises(ValueError, match=rf"{path} {message}"):
        IdxRecords(path).open()


def test_idx_that_is_damaged_swapped_or_missing_is_refused(tmp_path: Path) -> None:
    images, labels = write_idx(tmp_path / "images.gz", IMAGES), write_idx(tmp_path / "labels", LABELS)
    with pytest.raises(ValueError, match="swapped"):
        IdxRecords(labels, images).open()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gz does not exist"):
        IdxRecords(tmp_path / "nowhere.gz").open()
    with pytest.raises(ValueError, match=r"2 labels but .* 3 images"):
        IdxRecords(images, write_idx(tmp_path / "two", LABELS[:2])).open()
    with pytest.raises(ValueError, match="label 2 but only 2 classes"):
        IdxRecords(images, labels, ["a", "b"]).open()
    (tmp_path / "header").write_bytes(b"\0\0\x08")
    with pytest.raises(ValueError, match="ends after 3 bytes"):
        IdxRecords(tmp_path / "header").open()
    images.write_bytes(images.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"images\.gz of \d+ bytes is damaged"):
        IdxRecords(images).open()


# ------------------------------------------------------------------------------------------------------------ folder
def test_class_folders_and_caption_files(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"cat/1.png": png(1), "ant/deep/2.png": png(2)}
    source = FolderRecords(write_files(tmp_path, files))
    assert source[0].id == "ant/deep/2.png" and source.classes == ["ant", "cat"]
    assert [source[i].label for i in range(len(source))] == [0, 1] and source[0].caption is None
    assert FolderRecords(tmp_path, classes=["cat", "ant"])[0].label == 1
    assert FolderRecords(tmp_path, class_folders=False)[0].label is None
    write_files(tmp_path, {"cat/1.txt": "a cat\n", "ant/deep/2.txt": "an ant"})
    assert [FolderRecords(tmp_path)[i].caption for i in range(2)] == ["an ant", "a cat"]


def test_folder_that_is_ambiguous_or_incomplete_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.png": png(), "cat/2.png": png(), "cat/1.txt": "a cat"})
    with pytest.raises(ValueError, match=r"1 of 2 pictures have no caption file, first .*2\.txt"):
        FolderRecords(tmp_path).open()
    with pytest.raises(ValueError, match="'cat', which is not among"):
        FolderRecords(tmp_path, classes=["dog"]).open()
    with pytest.raises(ValueError, match="caption_column is 'text' but"):
        FolderRecords(tmp_path, caption_column="text").open()
    write_files(tmp_path, {"loose.png": png()})
    with pytest.raises(ValueError, match=r"outside them, such as 'loose\.png'"):
        FolderRecords(tmp_path).open()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        FolderRecords(tmp_path / "nowhere").open()


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_gives_captions_and_labels(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": "b/1.png", "text": "one, two", "label": 3}, {"file_name": "a.png", "text": "x", "label": 0}]
    lines = [json.dumps(row) for row in rows]
    if name.endswith("csv"):
        lines = ["file_name,text,label", 'b/1.png,"one, two",3', "a.png,x,0"]
    write_files(tmp_path, {"b/1.png": png(7), "a.png": png(9), name: "\n".join(lines)})
    source = FolderRecords(tmp_path)
    record = source[0]
    assert len(source) == 2 and (record.id, record.caption, record.label) == ("b/1.png", "one, two", 3)
    assert record.image.getpixel((0, 0)) == 7 and source.classes is None
    assert FolderRecords(tmp_path, label_column="text").classes is None
    named = FolderRecords(tmp_path, label_column="text")
    named.open()
    assert named.classes == ["one, two", "x"]
    with pytest.raises(ValueError, match=r"no column 'caption'; it has \['file_name', 'label', 'text'\]"):
        FolderRecords(tmp_path, caption_column="caption").open()


def test_metadata_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    cases = [
        ("jsonl", '{"text": "x"}', "has no column 'file_name'"),
        (
            "jsonl",
            '{"file_name": "a", "label": 1}\n{"file_name": "b", "label": "x"}',
            "holds 1 and 'x' among its labels",
        ),
        ("jsonl", '{"file_name": "a", "label": -1}', "label -1"),
        ("csv", "file_name;text\na.png;a cat\n", r"has no column 'file_name'; it has \['file_name;text'\]"),
        ("csv", "file_name,text,text\na.png,a,b\n", "names a column twice"),
        ("csv", 'file_name,text\na.png,"a cat\nb.png,a dog\n', r"line \d or before .*close every quote"),
    ]
    for number, (suffix, text, message) in enumerate(cases):
        root = write_files(tmp_path / str(number), {f"metadata.{suffix}": text})
        with pytest.raises(ValueError, match=message):
            FolderRecords(root).open()


BAD_ROWS = {
    "metadata.jsonl": {
        "not json": "not JSON",
        "[1]": "no JSON object",
        "[" * 99_999: "nested too deeply",
        '{"file_name": "0.png", "text": ["a cat", "one cat"], "label": 1}': "'text' holds a list .*, not a text",
        '{"file_name": "0.png", "text": {"en": "a cat"}, "label": 1}': "'text' holds a dict",
        '{"file_name": "0.png", "text": 5, "label": 1}': "'text' holds a int",
        '{"file_name": "0.png", "text": null, "label": 1}': "'text' holds nothing",
        '{"file_name": "0.png", "text": "a \\ud83d", "label": 1}': "half a character",
        '{"file_name": "0.png", "text": "a \\u0000", "label": 1}': "a control character",
        '{"file_name": "0.png", "text": "x", "label": null}': "it has no label",
        '{"file_name": "0.png", "text": "x", "label": 1.5}': "no whole number",
        '{"file_name": "0.png", "text": "x", "label": NaN}': "not JSON",
        '{"file_name": "0.png", "text": "x", "label": 1e400}': "no whole number",
        '{"file_name": "0.png", "text": "x", "label": [1]}': "label holds a list",
        '{"file_name": 5, "text": "x", "label": 1}': "file_name holds a int",
        '{"file_name": "a\\u0000b", "text": "x", "label": 1}': "file_name: .*control character",
        '{"text": "x", "label": 1}': "file_name holds nothing",
    },
    "metadata.csv": {
        "0.png,a cat, sitting,1": "4 fields for 3 columns; put quotes around",
        "0.png,a cat": "it has no label",
        "0.png,a cat,": "it has no label",
        ",a cat,1": "it has no 'file_name'",
        "0.png,caf\udce9,1": "byte 0xe9 .* is not UTF-8",
    },
}


@pytest.mark.parametrize(
    ("name", "row", "reason"), [(n, *case) for n, rows in BAD_ROWS.items() for case in rows.items()]
)
def test_a_row_that_cannot_be_used_is_a_bad_record_named_by_its_line(
    tmp_path: Path, name: str, row: str, reason: str
) -> None:
    lines = ["file_name,text,label", "0.png,a cat,0", row, "1.png,a dog,2"]
    if name.endswith("jsonl"):
        good = [json.dumps({"file_name": f"{n}.png", "text": ("a cat", "a dog")[n], "label": 2 * n}) for n in range(2)]
        lines = ["", good[0], row, good[1]]
    text = "\n".join(lines).encode(errors="surrogateescape")
    source = FolderRecords(write_files(tmp_path, {"0.png": png(), "1.png": png(), name: text}))
    assert len(source) == 3
    assert [source[place].caption for place in (0, 2)] == ["a cat", "a dog"]
    assert [source.label_of(place) for place in (0, 2)] == [0, 2]
    for read in (source.__getitem__, source.caption_of, source.label_of, source.size):
        with pytest.raises(CorruptRecord, match=rf"line 3 of .*{name}: .*{reason}"):
            read(1)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "0.txt"])
@pytest.mark.parametrize("caption", ["a cat", "x" * 200_000, "caf\u00e9, \U0001f600 two"])
def test_byte_order_marks_and_long_captions(tmp_path: Path, name: str, caption: str) -> None:
    rows = {"csv": f'file_name,text\r\n0.png,"{caption}"\r\n', "txt": caption + "\r\n"}
    rows["jsonl"] = json.dumps({"file_name": "0.png", "text": caption}) + "\r\n"
    source = FolderRecords(write_files(tmp_path, {"0.png": png(), name: rows[name.split(".")[1]].encode("utf-8-sig")}))
    assert [source[place].caption for place in range(len(source))] == [caption]
    if name != "0.txt":
        write_files(tmp_path, {name: "file_name".encode("utf-16")})
        with pytest.raises(ValueError, match=rf"{name} is not UTF-8 but UTF-16"):
            FolderRecords(tmp_path).open()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "link.png", "folder/secret.png"])
def test_metadata_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"secret.png": png(), "data/metadata.jsonl": json.dumps({"file_name": name})})
    os.symlink(tmp_path / "secret.png", tmp_path / "data/link.png")
    os.symlink(tmp_path, tmp_path / "data/folder")
    with pytest.raises(ValueError, match="outside"):
        FolderRecords(tmp_path / "data").open()


@pytest.mark.parametrize("target", ["secret.png", "other"])
def test_links_cannot_leave_the_folder(tmp_path: Path, target: str) -> None:
    write_files(tmp_path, {"secret.png": png(), "other/1.png": png(), "data/a.png": png()})
    os.symlink(tmp_path / target, tmp_path / "data/link.png")
    with pytest.raises(ValueError, match=r"leads to 'link\.png', outside"):
        FolderRecords(tmp_path / "data").open()


def test_unreadable_pictures_are_corrupt_records(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(buffer, "png")
    torn, other = buffer.getvalue()[:500], io.BytesIO()
    Image.new("L", (4, 4)).save(other, "pcx")  # Pillow reads it, but it is not among IMAGE_FORMATS
    files: dict[str, bytes | str] = {"0.png": torn, "1.png": "text", "2.png": png(size=(64, 64))}
    files["3.png"] = other.getvalue()
    source = FolderRecords(write_files(tmp_path, files), max_pixels=63 * 64)
    for index, reason in enumerate(
        ["OSError", "no picture of a known format", "64 x 64 pixels", "no picture of a known format"]
    ):
        with pytest.raises(CorruptRecord, match=reason):
            source[index]
    with pytest.raises(ValueError, match="max_pixels is 0; allowed: 1 to"):
        FolderRecords(tmp_path, max_pixels=0)


def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    whole = png()
    bomb = whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]
    source = FolderRecords(write_files(tmp_path, {"bomb.png": bomb}))
    with pytest.raises(CorruptRecord, match="DecompressionBombError"):
        source[0]


# ------------------------------------------------------------------------------------------------------ Hugging Face
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder written by ``save_to_disk`` with one unreadable image and one empty caption."""
    folder = tmp_path_factory.mktemp("hf")
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": data, "path": None} for data in (png(5), b"junk", png())],
            "label": [1, 0, 1],
            "text": ["five", "junk", None],
            "kind": ["b", "a", "b"],
        },
        features=datasets.Features(
            image=datasets.Image(decode=False),
            label=datasets.ClassLabel(names=["ant", "bee"]),
            text=datasets.Value("string"),
            kind=datasets.Value("string"),
        ),
    )
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(folder / "data"))
    return folder / "data"


def test_saved_data_set_gives_records(saved: Path) -> None:
    source = HuggingFaceRecords(str(saved), label_column="label", caption_column="text")
    record = source[0]
    assert (len(source), record.label, record.caption, record.image.getpixel((0, 0))) == (3, 1, "five", 5)
    assert source.classes == ["ant", "bee"]
    assert len(HuggingFaceRecords(str(saved), split="test")) == 1
    named = HuggingFaceRecords(str(saved), label_column="kind")
    assert named[0].label == 1 and named.classes == ["a", "b"] and named[0].caption is None
    for index, reason in ((1, "no picture of a known format"), (2, "column 'text' is empty")):
        with pytest.raises(CorruptRecord, match=reason):
            source[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, r"no split 'validation'; it has \['test', 'train'\]"),
        ({"caption_column": "caption"}, r"caption_column is 'caption', .* it has \['image', 'label', 'text', 'kind'\]"),
        ({"image_column": "text"}, "column 'text' .* not pictures"),
        ({"caption_column": "label"}, "column 'label' .* not one text a row"),
    ],
)
def test_saved_data_set_names_what_is_wrong(saved: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HuggingFaceRecords(str(saved), **options).open()  # type: ignore[arg-type]


def test_local_folder_goes_through_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_files(tmp_path / "data", {"cat/1.png": png(3), "dog/2.png": png(4)})
    source = HuggingFaceRecords(str(folder), label_column="label")
    assert [source[i].image.getpixel((0, 0)) for i in range(len(source))] == [3, 4]
    assert source.classes == ["cat", "dog"] and source[1].label == 1
    secret = write_files(tmp_path, {"secret.png": png()}) / "secret.png"
    with pytest.raises(CorruptRecord, match="outside the data set"):
        source._image({"bytes": None, "path": str(secret)})


def test_data_set_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' was found neither as a folder"):
        HuggingFaceRecords("nobody/nothing").open()
