"""What is wrong with a published file, an entry of it or the options of its task is named before a run starts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.evaluation.entries import JsonEntries
from datamodules.evaluation.published import PublishedTask
from datamodules.sources.records import CorruptRecord
from tests.tiny_files import png
from tests.tiny_published import CHOICE, OPEN, core, opened, picture, tdiuc, write


# ---------------------------------------------------------------------------------------------------- broken entries
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, r"`answer` is 2, neither the text nor the position of one of \['cat', 'dog'\]"),
        ({"answer": -1}, "`answer` is -1"),
        ({"answer": "cow"}, "`answer` is 'cow'"),
        ({"answer": True}, "`answer` is True"),
        ({"answer": None}, "`answer` is None"),
        ({"answer_options": ["cat", "cat"]}, "two or more different options"),
        ({"answer_options": "cat"}, "`answer` is 1"),
        ({"answer_options": [1, 2]}, "neither a text nor a list of texts"),
        ({"question": ""}, "there is no question"),
        ({"question": 3}, "`question` is 3"),
        ({"image": ""}, "`image` is '', not a picture in base64"),
        ({"image": 391895}, "`image` is 391895, not a picture in base64"),
        ({"image": "COCO_val2014.jpg"}, "no picture of a known format|not base64"),
        ({"image": [picture(), "x"]}, "`image` 1 is not base64"),
        ({"image": picture(size=(100, 40))}, "100 x 40 pixels are more than max_pixels=1000"),
        ({"history": [{"from": "alien", "value": "hi"}]}, "unknown role 'alien'"),
        ({"turn": "2"}, "`turn` is '2'"),
        ({"question_id": None}, "`question_id` is None"),
    ],
)
def test_broken_entry_is_named_by_file_and_index(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    task = core(tmp_path, {**CHOICE, "question_id": "q0"}, {**CHOICE, **change}, max_pixels=1000)
    task.open()
    assert task[0].id == "q0"
    with pytest.raises(CorruptRecord, match=rf"own.json entry 1: .*({message})"):
        task[1]


@pytest.mark.parametrize("field", ["question_id", "image", "question", "answer_options", "answer"])
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    task = core(tmp_path, {name: value for name, value in CHOICE.items() if name != field})
    task.open()
    with pytest.raises(CorruptRecord, match=f"entry 0: field `{field}` is missing; there are"):
        task[0]


def test_entry_that_is_no_object_and_torn_picture_are_found(tmp_path: Path) -> None:
    torn = base64.b64encode(png(3, size=(64, 64))[:-30]).decode()
    task = core(tmp_path, "text", {**CHOICE, "image": torn})
    task.open()
    with pytest.raises(CorruptRecord, match="entry 0: not a JSON object"):
        task[0]
    with pytest.raises(CorruptRecord, match="entry 1: "):
        task[1]


def test_open_questions_need_accepted_answers(tmp_path: Path) -> None:
    task = core(tmp_path, {**OPEN, "answer_txt": " "}, formulation="OCROpenEnded")
    task.open()
    with pytest.raises(CorruptRecord, match="entry 0: OCROpenEnded needs accepted answers"):
        task[0]


def test_repeated_ids_are_read_and_entries_can_be_numbered(tmp_path: Path) -> None:
    """Which of them is asked is decided where samples are checked."""
    task = core(tmp_path, CHOICE, CHOICE)
    task.open()
    assert [task[number].id for number in range(2)] == ["q1", "q1"] and "{id: null}" in task.remedy
    task = core(tmp_path, CHOICE, CHOICE, fields={"id": None})
    task.open()
    assert [task[number].id for number in range(2)] == ["0", "1"]


# ------------------------------------------------------------------------------------------------------- broken files
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"a": 1}', "own.json is not JSON: ',' or ']' is expected, byte 18"),
        ('{"data": [{"a": }]}', "own.json is not JSON"),
        ('{"data": []} x', "there is more behind its end"),
        ('{"data" []}', "a name and a colon are expected"),
        ("", "holds no list of entries in `data`"),
        ('{"data": 3}', "holds no list of entries"),
        ('{"version": 1, "rows": []}', "has no `data`; it has version, rows"),
        ('{"data": []}', "holds no entries"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "own.json", text)
    task = PublishedTask(file=tmp_path / "own.json", dimension="spatial", formulation="SingleChoice")
    with pytest.raises(ValueError, match=message):
        task.open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{x", "is not JSON: Expecting property name"),
        (b'{"choice": ["caf\xe9"]}', "is not JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b'{"answers": []}', "holds no list `choice` of answers"),
    ],
)
def test_broken_list_of_choices_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    tdiuc(tmp_path)
    (tmp_path / "huggingface_data/TDIUC/choice_list/color.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/huggingface_data/TDIUC/choice_list/color\.json {message}"):
        opened(tmp_path, "TDIUC-Color")


def test_repeated_annotations_spoil_their_own_entry_alone(tmp_path: Path) -> None:
    tdiuc(tmp_path)
    path = tmp_path / "huggingface_data/TDIUC/TDIUC_val_anns.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps([*notes, notes[0] | {"answers": [{"answer": "blue"}]}, "no object"]))
    repeated = notes[0]["question_id"]
    task = opened(tmp_path, "TDIUC-Color")
    reasons = []
    for number in range(len(task)):
        try:
            task[number]
        except CorruptRecord as error:
            reasons.append(str(error))
    assert len(reasons) == 1 and f"has several entries with `question_id` {repeated}" in reasons[0]


def test_entries_are_found_in_any_language_and_spacing(tmp_path: Path) -> None:
    rows = [{"text": 'Stra\u00dfe \u65e5\u672c \U0001f600 ] } " \\'}, {"text": "b"}]
    content = {"n\u00e4me": "\u00fcber", "data": {"rows": rows, "more": [1]}}
    for indent, ascii_only in [(None, True), (None, False), (2, False)]:
        (tmp_path / "a.json").write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        entries = JsonEntries(tmp_path / "a.json", "data.rows")
        assert [entries[number] for number in range(len(entries))] == rows
        assert entries.header["more"] == [1]
        assert "\u00fcber" in entries.header.values()


def test_what_an_editor_or_another_program_leaves_in_a_file_spoils_no_other_entry(tmp_path: Path) -> None:
    rows = '[{"text": "a"}, {"text": NaN}, {"text": ' + "9" * 5000 + '}, {"text": "b"}]'
    (tmp_path / "a.json").write_text('\ufeff{"data": ' + rows + "}", encoding="utf-8")
    entries = JsonEntries(tmp_path / "a.json", "data")
    assert [entries[0], entries[3]] == [{"text": "a"}, {"text": "b"}]
    for number, reason in ((1, "NaN is no number"), (2, "4300 digits")):
        with pytest.raises(ValueError, match=reason):
            entries[number]
    (tmp_path / "b.json").write_text('{"version": NaN, "data": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.json holds what is not JSON: NaN"):
        JsonEntries(tmp_path / "b.json", "data")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*cifar10_test_10p\.json"):
        opened(tmp_path, "CIFAR10")
    for root in (str(tmp_path / "missing"), "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match=f"'CIFAR10': .* neither in a folder '{root}' nor .* set `root`"):
            PublishedTask("CIFAR10", root=root).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "CIFAR"}, "data set 'CIFAR' is unknown; did you mean 'CIFAR10'"),
        ({"dataset": "CIFAR10", "dimension": "spatial"}, "which says what `dimension` is"),
        ({"dataset": "CIFAR10", "layout": "core"}, "which says what `layout` is"),
        ({"file": "a.json", "dimension": "spatial"}, "`formulation` is missing"),
        ({}, "`file` is missing; give `dataset`"),
        ({"file": "a.json", "dimension": "spice", "formulation": "SingleChoice"}, "dimension 'spice' is unknown"),
        ({"dataset": "CIFAR10", "limit": 0}, "limit is 0"),
        ({"dataset": "CIFAR10", "fields": {"img": "x"}}, "a layout has no field 'img'"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PublishedTask(**options)
