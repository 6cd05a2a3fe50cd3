"""Columns of tables and files beside images: read whatever letters they are named in, or told not to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules import (
    ConversationRecords,
    CorruptRecord,
    FolderRecords,
    HuggingFaceRecords,
    ImageDataModule,
    TarRecords,
)
from datamodules.record_dataset import TooManyCorruptRecords
from datamodules.sources.huggingface_tables import load_rows
from tests.tiny_files import png, write_files, write_tar

PICTURES: dict[str, bytes | str] = {f"{number}.png": png(number) for number in range(2)}


def table(root: Path, header: str, *, name: str = "metadata.csv") -> FolderRecords:
    names = header.split(",")
    rows = [[f"{number}.png", f"one {number}", str(number)] for number in range(2)]
    if name.endswith(".csv"):
        text = "\n".join([header, *map(",".join, rows)])
    else:
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    return FolderRecords(write_files(root, PICTURES | {name: text}))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("header", ["file_name,text,label", "File_Name,Text,LABEL", " FILE_NAME , text , Label "])
def test_columns_are_found_in_whatever_letters(tmp_path: Path, header: str, name: str) -> None:
    source = table(tmp_path, header, name=name)
    assert [(record.caption, record.label) for record in (source[0], source[1])] == [("one 0", 0), ("one 1", 1)]
    assert source.notes == []


def test_columns_that_are_not_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = table(tmp_path, "file_name,caption,class")
    assert (source[0].caption, source[0].label) == (None, None)
    assert "FolderRecords: columns ['caption', 'class'] of" in caplog.text
    assert "set label_column or caption_column" in caplog.text
    chosen = FolderRecords(tmp_path, label_column="class", caption_column="caption")
    assert (chosen[1].caption, chosen[1].label, chosen.notes) == ("one 1", 1, [])
    half = FolderRecords(tmp_path, caption_column="caption")
    half.open()
    assert len(half.notes) == 1 and "['class']" in half.notes[0] and "caption_column" not in half.notes[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.csv": "file_name,label,Label\n0.png,1,2\n"}, r"has the columns \['Label', 'label'\]"),
        (
            {"metadata.jsonl": '{"file_name": "0.png", "Text": "a"}\n{"file_name": "1.png", "text": "b"}'},
            "'Text', 'text'",
        ),
        (
            {"Metadata.csv": "file_name,label\n0.png,1\n"},
            r"holds Metadata\.csv, which is not read: name it metadata\.csv",
        ),
        ({"metadata.csv": "file_name\n0.png\n", "METADATA.JSONL": ""}, "holds both"),
        ({"metadata.json": "[]"}, r"holds metadata\.json, which is not read: write it as metadata\.jsonl or"),
        ({"0.txt": "a", "0.caption": "b", "1.txt": "c"}, "are captions of one picture"),
    ],
)
def test_what_may_mean_two_things_is_refused(tmp_path: Path, files: dict[str, bytes | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderRecords(write_files(tmp_path, PICTURES | files)).open()


def test_files_beside_pictures_are_captions_or_told(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"0.caption": "zero", "1.TXT": "one", "0.json": "{}", "1.tags": "x"}
    source = FolderRecords(write_files(tmp_path, PICTURES | files))
    assert [source[0].caption, source[1].caption, source.unused] == ["zero", "one", []]
    assert source.notes == ["2 files beside pictures of their names are not read: '0.json', '1.tags'"]
    write_files(tmp_path, {"metadata.csv": "file_name\n0.png\n1.png\n", "0.jpg": png()})
    tabled = FolderRecords(tmp_path)
    assert tabled[0].caption is None and tabled.unused == ["0.jpg"], "a picture is no company of another"
    assert tabled.notes[0].startswith("4 files beside pictures of their names are not read: '0.caption'")


def test_folders_beside_a_table_are_told_not_to_be_classes(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "a/0.png": png(),
        "b/0.png": png(),
        "metadata.csv": "file_name\na/0.png\nb/0.png\n",
    }
    source = FolderRecords(write_files(tmp_path, files))
    source.open()
    assert source.notes == ["folders such as 'a' are no classes, as metadata.csv has no column of labels"]


@pytest.mark.parametrize("name", ["Image", " image", "Conversations", "CANDIDATES"])
def test_keys_of_conversations_are_not_passed_over(tmp_path: Path, name: str) -> None:
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    entry: dict[str, Any] = {"conversations": talk, name: ["a"], "id": 1, "Width": 3}
    (tmp_path / "a.jsonl").write_text(json.dumps(entry))
    with pytest.raises(CorruptRecord, match=f"line 1: '{name}' is not read: name it '{name.strip().lower()}'"):
        ConversationRecords(tmp_path / "a.jsonl")[0]


@pytest.mark.parametrize("name", [".", "..", "/", "", " ", "a/", "../x.png", "\x00.png", "x" * 300 + ".png"])
def test_names_that_are_none_spoil_their_row_or_are_refused_by_line(tmp_path: Path, name: str) -> None:
    rows = "\n".join(json.dumps({"file_name": each}) for each in ("0.png", name, "1.png"))
    source = FolderRecords(write_files(tmp_path, PICTURES | {"metadata.jsonl": rows}))
    try:
        assert len(source) == 3 and source[2].id == "1.png"
        with pytest.raises(CorruptRecord):
            source[1]
    except ValueError as error:
        assert "line 2" in str(error) and "outside" in str(error)


def test_fields_that_are_there_twice_spoil_their_record(tmp_path: Path) -> None:
    rows = '{"file_name": "0.png", "label": 1, "label": 2}\n{"file_name": "1.png", "label": 1}'
    source = FolderRecords(write_files(tmp_path, PICTURES | {"metadata.jsonl": rows}))
    assert source[1].label == 1
    with pytest.raises(CorruptRecord, match=r"line 1 .*field 'label' is there twice"):
        source[0]
    talk = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "value": "c"}]}'
    (tmp_path / "a.jsonl").write_text(talk)
    with pytest.raises(CorruptRecord, match="line 1: field 'value' is there twice"):
        ConversationRecords(tmp_path / "a.jsonl")[0]
    (tmp_path / "a.json").write_text(f"[{talk}]")
    with pytest.raises(ValueError, match=r"a\.json: field 'value' is there twice"):
        ConversationRecords(tmp_path / "a.json").open()
    shard = write_tar(tmp_path / "0.tar", {"0.png": png(), "0.json": b'{"t": "a", "t": "b"}'})
    with pytest.raises(CorruptRecord, match="field 't' is there twice"):
        TarRecords(str(shard), caption="json.t")[0]


def test_pictures_named_by_several_rows_and_classes_alike_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "\nfile_name,label\n0.png,Cat\n0.png,cat\n1.png,dog\n"
    source = FolderRecords(write_files(tmp_path, PICTURES | {"metadata.csv": rows}))
    assert len(source) == 3, "blank lines before the header do not count"
    assert "1 pictures are named by several rows" in caplog.text
    assert "classes that differ in capitals or spaces alone: ['Cat', 'cat']" in caplog.text


def test_parts_of_shards_may_be_named_as_files_are(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "0.tar", {"0.PNG": png(), "0.CLS": b"2", "0.TXT": b"two"}))
    record = TarRecords(shard, caption=".TXT", label="CLS")[0]
    assert (record.caption, record.label) == ("two", 2)


WORDS = ["NA", "nan", "null", "None", "n/a"]  # pandas takes them for missing
NAMED = "file_name,text,label\n" + "".join(f"{place}.png,{word},{word}\n" for place, word in enumerate(WORDS))
SHOWN: dict[str, bytes | str] = {f"{place}.png": png(place) for place in range(len(WORDS))}


def test_words_for_nothing_are_texts_and_names_like_others_beside_a_folder(tmp_path: Path) -> None:
    source = FolderRecords(write_files(tmp_path, SHOWN | {"metadata.csv": NAMED}))
    assert [source[place].caption for place in range(5)] == WORDS and source.classes == sorted(WORDS)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_words_for_nothing_are_texts_in_data_sets_of_csv_files(tmp_path: Path, streaming: bool) -> None:
    write_files(tmp_path / "rows", {"train.csv": f"{NAMED}5.png,,\n"})
    more: dict[str, Any] = {"split": "train", "revision": None, "streaming": streaming}
    files = [str(tmp_path / "rows" / "train.csv")]
    for rows in (load_rows(str(tmp_path / "rows"), None, **more), load_rows("csv", None, files=files, **more)):
        assert [row["label"] for row in rows] == [*WORDS, None]  # only a blank cell is missing


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("option", "column"), [("caption_column", "text"), ("label_column", "label")])
def test_words_that_datasets_loses_are_refused(tmp_path: Path, option: str, column: str) -> None:
    root = str(write_files(tmp_path / "set", SHOWN | {"metadata.csv": NAMED}))
    options: dict[str, Any] = {option: column}
    with pytest.raises(
        ValueError, match=rf"metadata\.csv: column '{column}' holds 'NA' in line 2, .*: use FolderRecords"
    ):
        HuggingFaceRecords(root, **options).open()
    HuggingFaceRecords(root).open()
    write_files(tmp_path / "set", {"metadata.csv": "file_name,text,label\n0.png,a,b\n1.png,,\n"})
    assert HuggingFaceRecords(root, **options)[0].id == "0"


def test_pictures_that_a_table_names_and_that_are_not_there_are_told_before_training(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"file_name": name}) for name in ("0.png", "gone.png", "1.png"))
    source = FolderRecords(write_files(tmp_path, PICTURES | {"metadata.jsonl": rows}))
    with pytest.raises(CorruptRecord, match=r"line 2 of .*metadata\.jsonl: it names 'gone\.png', which is not there"):
        source[1]
    options: dict[str, Any] = {"image_size": 8, "batch_size": 1}
    refused = ImageDataModule(FolderRecords(tmp_path), **options)
    for early in (lambda: refused.open_early("fit"), lambda: refused.setup("fit")):
        with pytest.raises(TooManyCorruptRecords, match=r"1 of 3 records are unreadable, 0 are allowed: .*gone\.png"):
            early()
    ImageDataModule(FolderRecords(tmp_path), allowed={"corrupt_share": 0.4}, **options).setup("fit")
