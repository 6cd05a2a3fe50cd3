"""Every sample is read and put to the processor before a run; what cannot be used is named by file and position."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    ConversationRecords,
    FolderRecords,
    IdxRecords,
    LabelledQuestions,
    MixedRecords,
    RecordSource,
    ReformEvalDataModule,
    TarRecords,
)
from datamodules.evaluation.published import PublishedTask
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.tasks.naming import NamingTask
from datamodules.evaluation.tasks.questions import QuestionsTask
from tests.tiny_chats import entry
from tests.tiny_files import png, write_files, write_idx, write_tar
from tests.tiny_processors import family_processor
from tests.tiny_published import CHOICE, OPEN, core
from tests.tiny_records import BASIC

NAMES = ("bag", "coat", "dress", "shirt")


def encoded(mode: str, size: tuple[int, int] = (16, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "png")
    return buffer.getvalue()


DEEP, THIN, TORN = encoded("I;16"), encoded("L", (800, 2)), png(1, size=(64, 64))[:-30]


def folder_of(path: Path, *, bad: bytes | None = None) -> FolderRecords:
    """Nine images of four classes; the one at position 7, in the folder ``shirt``, may be another."""
    files: dict[str, bytes | str] = {f"{NAMES[n // 2 % 4]}/{n}.png": png(20 * n, size=(16, 12)) for n in range(8)}
    files |= {"bag/8.png": png(9)} | ({} if bad is None else {"shirt/6.png": bad})
    return FolderRecords(write_files(path, files))


def published(path: Path, bad: bytes) -> PublishedTask:
    entries = [{**CHOICE, "question_id": n} for n in range(9)]
    return core(path, *entries[:7], {**entries[7], "image": base64.b64encode(bad).decode()}, entries[8])


def talks(path: Path, bad: bytes) -> QuestionsTask:
    write_files(path, {f"{n}.png": bad if n == 7 else png(20 * n, size=(16, 12)) for n in range(9)})
    entries = [entry("<image>What?", NAMES[n % 4], image=f"{n}.png", candidates=NAMES, answer=n % 4) for n in range(9)]
    (path / "own.json").write_text(json.dumps(entries))
    return QuestionsTask(ConversationRecords(path / "own.json", path), **BASIC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor that refuses images of extreme proportions."""
    folder = tmp_path_factory.mktemp("model")
    family_processor("qwen2_5_vl").save_pretrained(folder)
    return folder


def checked(model: Path, *tasks: EvaluationTask, **options: Any) -> ReformEvalDataModule:
    data = ReformEvalDataModule(list(tasks), str(model), **options)
    data.setup("test")
    return data


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(DEEP, "image mode I;16 has more than 8 bits"), (THIN, "the processor refuses it"), (TORN, "truncated|broken")],
    ids=["deep", "thin", "torn"],
)
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda path, bad: NamingTask(folder_of(path, bad=bad), **BASIC), r"record 7 of \S+ \(shirt/6.png\)"),
        (published, r"\S+/own.json entry 7"),
        (talks, "own.json entry 7"),
    ],
    ids=["folder", "published", "conversations"],
)
def test_a_picture_that_cannot_be_used_is_named_before_the_run(
    model: Path, tmp_path: Path, make: Callable[[Path, bytes], EvaluationTask], where: str, bad: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"1 of 9 samples of task \w+ cannot be used: {where}: .*({reason})") as found:
        checked(model, make(tmp_path, bad), protocol={"methods": ["generation"]})
    assert str(found.value).count(".json entry 7") < 2  # said once


def test_pictures_that_are_not_drawn_are_not_looked_at(model: Path, tmp_path: Path) -> None:
    seeds = []
    for seed in range(6):
        try:
            checked(model, published(tmp_path, TORN), limit=2, seed=seed)
        except ValueError:
            continue
        seeds.append(seed)
    assert 2 <= len(seeds) < 6


def test_loader_processes_share_the_check(model: Path, tmp_path: Path) -> None:
    one, two = (checked(model, NamingTask(folder_of(tmp_path), **BASIC), num_workers=n) for n in (0, 2))
    assert one.facts() == two.facts() and one.questions() == two.questions()


def test_equal_ids_are_named_by_file_and_position(model: Path, tmp_path: Path) -> None:
    rows = [{"file_name": f"p{n}.png", "label": NAMES[n % 4]} for n in (0, 1, 2, 3, 4, 5, 6, 7, 3)]
    files: dict[str, bytes | str] = {f"p{n}.png": png(20 * n, size=(16, 12)) for n in range(8)}
    write_files(tmp_path, files | {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    place = rf"record (3|8) of {tmp_path} \(p3.png\)"
    with pytest.raises(ValueError, match=rf"{place}: it and {place} have the same id 'p3.png', of which the first is"):
        checked(model, NamingTask(FolderRecords(tmp_path), **BASIC))


def test_a_share_of_a_task_may_be_unusable_and_is_left_out_and_named(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all kinds that published files have; the other samples are asked as if these were not there."""
    good = [{**CHOICE, "question_id": n} for n in range(16)]
    bad = [
        {"answer_options": ["cat", "dog", "cat"]},
        {"answer_options": ["dog"], "answer": 0},
        {"question_id": 3},
        {"question_id": None},
        {"image": "AAAA"},
        {"question": "half a \ud83d smile"},
    ]
    (tmp_path / "all").mkdir()
    entries = [*good[:9], *({**CHOICE, "question_id": f"x{n}", **change} for n, change in enumerate(bad)), *good[9:]]
    task = core(tmp_path / "all", *entries, "no object")
    with caplog.at_level("WARNING"):
        data = checked(model, task, allowed={"corrupt_share": 0.31})
    assert "7 of 23 samples of task own cannot be used and are left out" in caplog.text
    reasons = data.left_out()["own"]
    assert len(reasons) == 7 and all(f"own.json entry {9 + n}" in reason for n, reason in enumerate(reasons[:6]))
    for reason, words in zip(
        reasons,
        ("different options", "two or more", "the same id '3'", "`question_id` is None", "known format", "half", "no"),
        strict=True,
    ):
        assert words in reason or "CorruptRecord" in reason, reason
    alone = checked(model, core(tmp_path, *good))
    assert list(data.questions().values()) == list(alone.questions().values())
    assert list(data.questions()) == list(alone.questions()) and alone.left_out() == {}
    message = (
        "7 of 23 samples of task own cannot be used: .*allowed.corrupt_share, which is 0.3 and allows 6.*{id: null}"
    )
    with pytest.raises(ValueError, match=message):
        checked(model, task, allowed={"corrupt_share": 0.3})
    with pytest.raises(ValueError, match=r"allowed\.corrupt_share is 1"):
        checked(model, task, allowed={"corrupt_share": 1})


def test_empty_references_are_left_out(model: Path, tmp_path: Path) -> None:
    entries = [{**OPEN, "question_id": n, "answer_txt": " " if n == 2 else "dog"} for n in range(4)]
    task = core(tmp_path, *entries, formulation="OCROpenEnded")
    data = checked(model, task, protocol={"methods": ["generation"]}, allowed={"corrupt_share": 0.25})
    assert len(data.questions()) == 3 and "needs accepted answers" in data.left_out()["own"][0]


def test_equal_ids_of_conversations_do_no_harm(model: Path, tmp_path: Path) -> None:
    """Files of the usual format repeat them; entries are told apart by their numbers."""
    data = checked(model, talks(tmp_path, png(1, size=(16, 12))))
    assert len(data.questions()) == 9


def test_sources_say_where_a_record_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    write_tar(tmp_path / "a.tar", {"k.png": png()})
    idx = IdxRecords(write_idx(tmp_path / "images", np.zeros((2, 4, 4), dtype=np.uint8)))
    assert folder.where(8) == f"record 8 of {tmp_path / 'folder'} (shirt/7.png)"
    assert TarRecords(str(tmp_path / "*.tar")).where(0) == f"record k of {tmp_path / 'a.tar'}"
    assert idx.where(1) == f"record 1 of {tmp_path / 'images'}"
    assert MixedRecords([idx, folder]).where(3) == folder.where(1)
    questions = LabelledQuestions(folder, per_record=2)
    assert questions.where(17) == f"question 1 about {folder.where(8)}"


# ------------------------------------------------------------------------------------------------------ what is covered
def hashes(model: Path, task: EvaluationTask, **options: Any) -> tuple[str, list[str]]:
    data = checked(model, task, **options)
    return data.facts()["tasks"][0]["hash"], list(data.questions().values())


@pytest.mark.parametrize("make", [folder_of, lambda path: talks(path, png(2, size=(16, 12))).source])
def test_contents_decide_and_not_names_and_times(
    model: Path, tmp_path: Path, make: Callable[[Path], RecordSource]
) -> None:
    """A copy elsewhere is the same task; an image of the same name, size and time with other pixels is another."""

    def task(source: RecordSource) -> EvaluationTask:
        made = NamingTask if isinstance(source, FolderRecords) else QuestionsTask
        return made(source, **BASIC)

    first = hashes(model, task(make(tmp_path / "here")))
    copied = make(tmp_path / "there")
    paths = sorted((tmp_path / "there").rglob("*.png"))
    for path in paths:
        os.utime(path, ns=(1, 1))
    assert hashes(model, task(copied)) == first
    other = png(99, size=(16, 12))
    assert len(other) == len(paths[3].read_bytes())
    paths[3].write_bytes(other)
    os.utime(paths[3], ns=(1, 1))
    total, each = hashes(model, task(copied))
    assert total != first[0]
    assert sum(one != two for one, two in zip(each, first[1], strict=True)) == 1


def test_instructions_and_texts_are_covered(model: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    plain = hashes(model, NamingTask(source, **BASIC))
    for options in ({"instructions": ["Look!"]}, {"wordings": ["What?"]}, {"options": 3}):
        assert not set(plain[1]) & set(hashes(model, NamingTask(source, **options, **BASIC))[1])
    assert set(hashes(model, NamingTask(source, **BASIC), limit=4)[1]) < set(plain[1])


def test_a_copied_file_is_the_same_task(model: Path, tmp_path: Path) -> None:
    task = published(tmp_path, png(1, size=(16, 12)))
    first = hashes(model, task)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "own.json", tmp_path / "b" / "other.json")
    same = PublishedTask(file=tmp_path / "b" / "other.json", dimension="spatial", formulation="SingleChoice")
    assert hashes(model, same) == first
