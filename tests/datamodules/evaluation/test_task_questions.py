"""Questions of tasks to learn from: true by construction, balanced, determined by the seed, of pictures kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    Conversation,
    CorruptRecord,
    CountingTask,
    MatchingTask,
    MixedRecords,
    PositionTask,
    ReadingTask,
    RenderedTextRecords,
    TaskQuestions,
)
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.tasks.distractors import paired
from datamodules.evaluation.tasks.similarity import SpellingSimilarity
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Turn
from tests.tiny_records import COLOURS, NAMES, Squares

COMMON: dict[str, Any] = {"name": "asked", "dimension": "spatial"}


def talks(task: EvaluationTask, **options: Any) -> list[Conversation]:
    source = TaskQuestions(task, **options)
    found = [source[index].conversation for index in range(len(source))]
    return [talk for talk in found if talk is not None]


def asked_name(talk: Conversation) -> str:
    (name,) = [name for name in NAMES if f'"{name}"' in talk.turns[0].text]
    return name


def squares_of(image: Image.Image, name: str) -> list[tuple[int, int]]:
    """Rows and columns of the canvas where a square of that name is, one place each."""
    same_HW = (np.asarray(image) == COLOURS[name.split()[0]]).all(-1)
    starts = same_HW & ~np.pad(same_HW, 1)[:-2, 1:-1] & ~np.pad(same_HW, 1)[1:-1, :-2]
    return [(int(row), int(column)) for row, column in np.argwhere(starts)]


@pytest.mark.parametrize("others", [0, 2])
def test_copies_are_counted_right_and_every_count_is_as_likely(others: int) -> None:
    task = CountingTask(Squares(120), low=1, high=4, others=others, canvas_size=96, side=16, **COMMON)
    counts: Counter[str] = Counter()
    for talk in talks(task):
        answer = talk.turns[-1].text
        assert len(squares_of(talk.images[0], asked_name(talk))) == int(answer)
        assert sorted(talk.candidates) == ["1", "2", "3", "4"] and talk.task == "asked"
        counts[answer] += 1
    assert min(counts.values()) > 15


@pytest.mark.parametrize(("layout", "others"), [("corners", 0), ("corners", 2), ("halves", 0)])
def test_a_place_is_told_right_among_places_that_hold_nothing(layout: Any, others: int) -> None:
    places: Counter[str] = Counter()
    for talk in talks(PositionTask(Squares(120), layout=layout, others=others, canvas_size=64, **COMMON)):
        image, answer = talk.images[0], talk.turns[-1].text
        ((row, column),) = squares_of(image, asked_name(talk))
        there = [sum(bool(squares_of(image, name)) for name in NAMES)]
        assert there == [others + 1] and len(talk.candidates) == (4 if layout == "corners" else 2)
        for word, holds in (("top", row < 16), ("bottom", row > 24), ("left", column < 16), ("right", column > 24)):
            assert holds or word not in answer.split(), (answer, row, column)
        places[answer] += 1
    assert min(places.values()) > 15 and len(places) == 4


def test_how_many_others_there_may_be_is_checked() -> None:
    for options, allowed in (({"others": 4}, "0 to 3"), ({"kind": "what", "others": 0}, "3"), ({"others": -1}, "0 to")):
        with pytest.raises(ValueError, match=rf"others is -?\d; allowed with .*: {allowed}"):
            PositionTask(Squares(), **options, **COMMON)  # type: ignore[arg-type]


def test_yes_and_no_are_hard_and_the_name_alone_tells_nothing() -> None:
    task = MatchingTask(Squares(120), partners=True, similar="images", **COMMON)
    found = [(asked_name(talk), talk) for talk in talks(task)]
    for name, talk in found:
        shown = next(other for other in NAMES if squares_of(talk.images[0], other))
        assert (talk.turns[-1].text == "yes") == (shown == name)
    answers = Counter((name, talk.turns[-1].text) for name, talk in found)
    assert set(answers.values()) == {10}  # of each name 20 squares: 10 with its own name, and 10 of its partner's
    wrong = {(name, other) for name, talk in found for other in NAMES if squares_of(talk.images[0], other)}
    assert {("purple thing", "blue thing"), ("red thing", "yellow thing")} <= wrong  # near in colour
    assert sum(name != other for name, other in wrong) == len(NAMES)
    with pytest.raises(ValueError, match="partners is for kind yes_no, and needs `similar`"):
        MatchingTask(Squares(), partners=True, **COMMON)


def test_partners_are_nobody_elses_and_an_odd_name_goes_between() -> None:
    names = ["coat", "coats", "boot", "boots", "bag"]
    found = paired(names, SpellingSimilarity(), allowed=lambda name: [other for other in names if other != name])
    assert sorted(found.values()) == sorted(names) and all(name != other for name, other in found.items())
    assert found["boot"] == "boots" or found["coat"] == "coats"
    with pytest.raises(ValueError, match="'cat' has no partner among 1 names"):
        paired(["cat"], SpellingSimilarity(), allowed=lambda name: [])


def test_names_whose_images_cannot_be_read_are_told() -> None:
    class Labelled(Squares):
        def label_of(self, index: int) -> int:
            return index % len(NAMES)

    task = MatchingTask(Labelled(len(NAMES), corrupt=(2,)), partners=True, similar="images", **COMMON)
    with pytest.raises(ValueError, match="none of 'blue thing' can be read"):
        task.open()


def test_a_word_has_as_many_pictures_as_copies_and_is_read_right() -> None:
    source = RenderedTextRecords(["1", "2", "cat"], side=48, copies=4)
    records = [source[index] for index in range(len(source))]
    assert Counter(record.caption for record in records) == {"1": 4, "2": 4, "cat": 4}
    assert len({record.needed_image.tobytes() for record in records}) == 12 == len({record.id for record in records})
    items = talks(ReadingTask(source, formulation="SingleChoice", similar=None, options=3, **COMMON))
    assert all(sorted(talk.candidates) == ["1", "2", "cat"] for talk in items) and len(items) == 12
    assert {talk.turns[-1].text for talk in items} == {"1", "2", "cat"}
    assert list(RenderedTextRecords(["1"]).content()) == [["1"], 224, 0], "resumed runs know their data"
    with pytest.raises(ValueError, match="copies is 0"):
        RenderedTextRecords(copies=0)


def test_questions_depend_on_seed_and_position_alone() -> None:
    def texts(seed: int = 0, **options: Any) -> list[Any]:
        task = CountingTask(Squares(30), seed=seed, canvas_size=96, side=16, low=1, high=4, **COMMON)
        return [(talk.turns, talk.images[0].tobytes()) for talk in talks(task, **options)]

    first = texts()
    assert first == texts() and first != texts(seed=1)
    assert [turns for turns, _ in first] != [turns for turns, _ in texts(vary=False)]
    task = CountingTask(Squares(30), low=1, high=4, **COMMON)
    found = [TaskQuestions(task, **options).fingerprint() for options in ({}, {"vary": False}, {"seed": 1})]
    assert len(set(found)) == 3 and list(TaskQuestions(task).content()) == found[:1]


def test_splits_of_a_source_share_no_picture() -> None:
    def ids(limit: int | None, skip: int) -> set[str]:
        source = MixedRecords([Squares(30)], limits=[limit], skips=[skip], seed=3)
        task = PositionTask(source, others=0, canvas_size=64, **COMMON)
        return {record.id for record in (TaskQuestions(task)[index] for index in range(len(source)))}

    splits = [ids(10, 0), ids(12, 10), ids(None, 22)]
    assert [len(split) for split in splits] == [10, 12, 8] and len(set.union(*splits)) == 30
    for skips, message in (([1, 2], "skips is"), ([-1], "skips is"), ([30], "source 1 has only 30 records")):
        with pytest.raises(ValueError, match=message):
            MixedRecords([Squares(30)], skips=skips).open()
    one, other = (MixedRecords([Squares(30)], limits=[5], skips=skips) for skips in (None, [5]))
    assert next(iter(one.content())) == ([5], 0) and one.fingerprint() != other.fingerprint()


class Two(EvaluationTask):
    """Samples with a history, and an answer that is no choice."""

    def _open(self) -> None:
        return

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def fingerprint(self) -> str:
        return "two"

    samples: Sequence[Sample] = ()


def test_images_come_first_in_a_dialogue_and_open_answers_have_no_candidates() -> None:
    image = Squares()[0].needed_image
    said = (Turn("user", "What is it?"), Turn("assistant", "A square."))
    task = Two(name="two", dimension="spatial", formulation="SingleChoice")
    task.samples = [
        Sample("a", ("Which colour?",), (image,), references=("red", "crimson"), history=said),
        Sample("b", (f"Here: {IMAGE} What?",), (image,), ("square", "circle"), 0),
        Sample("c", ("What?",), (image,), references=(" ",)),
    ]
    source = TaskQuestions(task)
    talk, other = source[0].conversation, source[1].conversation
    assert talk is not None and other is not None
    assert [turn.text for turn in talk.turns] == [f"{IMAGE}What is it?", "A square.", "Which colour?", "red"]
    assert talk.candidates == () and talk.answer is None
    assert [turn.text for turn in other.turns] == [f"Here: {IMAGE} What?", "square"] and other.answer == 0
    with pytest.raises(CorruptRecord, match="sample 2 of task two: turn 2, an answer, is empty"):
        source[2]


def test_unreadable_picture_is_told_with_its_place() -> None:
    source = TaskQuestions(PositionTask(Squares(30, corrupt=(4,)), others=0, canvas_size=64, **COMMON))
    (torn,) = [index for index in range(30) if source.where(index) == "record 4 of Squares"]
    with pytest.raises(CorruptRecord, match="record 4 of Squares: torn"):
        source[torn]
