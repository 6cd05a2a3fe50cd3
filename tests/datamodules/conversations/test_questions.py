"""Questions made by code: fair, determined by the seed, and with one right answer."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    Conversation,
    CorruptRecord,
    LabelledQuestions,
    MixedRecords,
    Record,
    RecordSource,
    TextQuestions,
)
from datamodules.conversations.questions import Task
from tests.tiny_records import MemoryRecords

NAMES = ["bag", "coat", "shoe", "dress", "hat"]


class Labelled(RecordSource):
    """Pictures whose first pixel is their class; labels can be asked for without them."""

    def __init__(self, total: int = 200, names: list[str] | None = None, unlabelled: bool = False) -> None:
        self.total = total
        self.names = NAMES if names is None else names
        self.unlabelled = unlabelled

    def _open(self) -> None:
        self.decoded = 0

    @property
    def classes(self) -> list[str]:
        return self.names

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        self.decoded += 1
        return Record(str(index), Image.new("L", (2, 2), index % len(self.names)), label=self.label_of(index))

    def label_of(self, index: int) -> int | None:
        return None if self.unlabelled else index % len(self.names)


def talks(source: RecordSource) -> list[Conversation]:
    found = [source[index].conversation for index in range(len(source))]
    return [conversation for conversation in found if conversation is not None]


def shown(conversation: Conversation) -> list[str]:
    return [NAMES[int(image.getpixel((0, 0)))] for image in conversation.images]  # type: ignore[arg-type]


def ask(task: Task, **options: Any) -> list[Conversation]:
    return talks(LabelledQuestions(Labelled(), tasks=[task], **options))


def test_naming_offers_all_classes() -> None:
    for talk in ask("naming"):
        assert list(talk.candidates) == NAMES and [talk.turns[1].text] == shown(talk) and talk.task == "naming"


def test_yes_and_no_are_balanced_and_true() -> None:
    counts: Counter[str] = Counter()
    for talk in ask("yes_no"):
        (named,) = [name for name in NAMES if f'"{name}"' in talk.turns[0].text]
        assert talk.candidates == ("yes", "no") and (talk.turns[1].text == "yes") == (shown(talk) == [named])
        counts[talk.turns[1].text] += 1
    assert 75 < counts["yes"] < 125


@pytest.mark.parametrize("task", ["choice", "lettered_choice"])
def test_choice_has_four_options_of_which_one_is_right(task: Any) -> None:
    places: Counter[int] = Counter()
    for talk in ask(task):
        text, answer = talk.turns[0].text, talk.turns[1].text
        assert len(set(talk.candidates)) == 4 and talk.answer is not None
        places[talk.answer] += 1
        if task == "choice":
            assert [answer] == shown(talk) and all(option in text for option in talk.candidates)
        else:
            assert talk.candidates == tuple("ABCD") and f"({answer}) {shown(talk)[0]}" in text
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 80


def test_comparisons_are_balanced_and_true() -> None:
    counts: Counter[str] = Counter()
    for talk in ask("comparison"):
        text, answer = talk.turns[0].text, talk.turns[1].text
        first, second = shown(talk)
        counts[answer] += 1
        assert text.startswith("First picture: <image> Second picture: <image> ")
        if answer in ("yes", "no"):
            assert (answer == "yes") == (first == second)
        else:
            (named,) = [name for name in NAMES if f'"{name}"' in text]
            assert first != second and named == (first if answer == "first" else second)
    assert set(counts) == {"yes", "no", "first", "second"} and min(counts.values()) > 30


def test_questions_depend_on_seed_and_position_alone() -> None:
    def texts(**options: Any) -> list[str]:
        return [talk.turns[0].text + talk.turns[1].text for talk in talks(LabelledQuestions(Labelled(), **options))]

    assert texts(seed=1) == texts(seed=1) != texts(seed=2)
    assert len(set(texts(tasks=["naming"]))) > 20 and len(set(texts(tasks=["naming"], vary=False))) == len(NAMES)


def test_each_picture_is_asked_each_task_once_if_there_are_as_many_questions() -> None:
    source = LabelledQuestions(Labelled(20), per_record=5)
    tasks = [talk.task for talk in talks(source)]
    assert len(source) == 100
    assert all(sorted(tasks[n : n + 5]) == sorted(get_args(Task)) for n in range(0, 100, 5))
    assert len({tuple(tasks[n : n + 5]) for n in range(0, 100, 5)}) == 5, "not every picture starts with the same task"
    assert source[7].label == 1 and source.label_of(7) == 1 and source.size(7) == (2, 2)


def test_labels_and_lengths_are_found_without_decoding_a_picture() -> None:
    pictures = Labelled()
    source = LabelledQuestions(pictures, tasks=["naming", "comparison"], per_record=2)
    extents = [source.extent(index) for index in range(len(source))]
    assert pictures.decoded == 0 and {images for images, _ in extents} == {1, 2}
    assert [images for images, _ in extents] == [len(talk.images) for talk in talks(source)]


def test_questions_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks is \['guess'\]; allowed: naming, yes_no"):
        LabelledQuestions(Labelled(), tasks=["guess"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="per_record is 0"):
        LabelledQuestions(Labelled(), per_record=0)
    with pytest.raises(ValueError, match="two or more class names, Labelled has \\['bag'\\]"):
        len(LabelledQuestions(Labelled(names=["bag"])))
    with pytest.raises(ValueError, match="record 0 of the source has none"):
        len(LabelledQuestions(Labelled(unlabelled=True)))


def test_two_classes_are_enough() -> None:
    for talk in talks(LabelledQuestions(Labelled(30, names=["a", "b"]), tasks=["choice", "lettered_choice"])):
        assert len(talk.candidates) == 2


def test_corrupt_picture_spoils_its_own_question_alone() -> None:
    source = LabelledQuestions(MemoryRecords(30, corrupt=(4,), classes=["a", "b", "c"]), tasks=["comparison"])
    with pytest.raises(CorruptRecord, match="torn"):
        source[4]
    others = [source[index].conversation for index in range(30) if index != 4]
    assert len(others) == 29 and all(talk is not None and len(talk.images) == 2 for talk in others)


# ----------------------------------------------------------------------------------------------------------- text alone
def test_text_questions_are_many_and_each_has_four_candidates_and_no_picture() -> None:
    source = TextQuestions()
    items = talks(source)
    assert len(items) == len(source) >= 200 and all(source[index].image is None for index in range(0, 300, 50))
    assert len({talk.turns[0].text for talk in items}) == len(items), "no question is asked twice"
    assert all(len(set(talk.candidates)) == 4 for talk in items)
    assert min(Counter(talk.answer for talk in items).values()) > len(items) / 6
    assert min(Counter(talk.task for talk in items).values()) >= 15
    again = talks(TextQuestions(seed=1))
    assert [talk.turns for talk in again] == [talk.turns for talk in items]
    assert [talk.candidates for talk in again] != [talk.candidates for talk in items]


def test_sums_and_successors_are_right() -> None:
    for talk in talks(TextQuestions(kinds=["sums"])):
        a, _, b = talk.turns[0].text.removeprefix("What is ").split("?")[0].split(" ")
        assert talk.turns[1].text == str(int(a) + int(b))
    following = {talk.turns[0].text: talk.turns[1].text for talk in talks(TextQuestions(kinds=["successors"]))}
    assert following["Which day of the week comes right after Monday? Answer in one word."] == "Tuesday"
    with pytest.raises(ValueError, match=r"kinds is \['jokes'\]; allowed: opposites"):
        TextQuestions(kinds=["jokes"])  # type: ignore[list-item]


# ---------------------------------------------------------------------------------------------------------------- mixed
def test_mixture_holds_all_records_and_no_more_than_the_limits() -> None:
    source = MixedRecords([Labelled(20), TextQuestions(kinds=["sums"]), Labelled(30)], limits=[None, 4, 6])
    ids = [source[index].id for index in range(len(source))]
    assert len(ids) == 30 and ids[:20] == [str(n) for n in range(20)] and len(set(ids[20:24])) == 4
    assert all(name.startswith("sums") for name in ids[20:24]) and max(map(int, ids[24:])) > 6, "drawn, not the first"
    assert source.classes == NAMES and source.label_of(3) == 3 and source.extent(21)[0] == 0
    assert source.size(25) == (2, 2)
    assert [source[n].id for n in range(24, 30)] == ids[24:]
    other = MixedRecords([Labelled(20), Labelled(30)], limits=[None, 6], seed=1)
    assert [other[n].id for n in range(20, 26)] != ids[24:]
    assert MixedRecords([Labelled(2), Labelled(2, names=["a", "b"])]).classes is None
    for sources, limits in (([], None), ([Labelled()], [0]), ([Labelled()], [1, 2])):
        with pytest.raises(ValueError, match=r"sources is empty|limits is \["):
            MixedRecords(sources, limits=limits)


def test_fingerprints_follow_options_and_sources() -> None:
    def mixed(total: int = 20, **options: Any) -> str:
        return MixedRecords([LabelledQuestions(Labelled(total), **options)]).fingerprint()

    found = [mixed(), mixed(21), mixed(seed=1), mixed(vary=False), mixed(per_record=2), mixed(tasks=["naming"])]
    assert mixed() == found[0] and len(set(found)) == len(found)
    assert len({MixedRecords([Labelled(9)], limits=[n]).fingerprint() for n in (1, 2, None)}) == 3
    assert np.all([len(text) == 64 for text in found])
