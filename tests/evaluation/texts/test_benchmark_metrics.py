"""Metrics of benchmarks against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sparsight.evaluation.questions.yes_no import mme_yes_no, pope_yes_no
from sparsight.evaluation.texts import (
    BoxAccuracy,
    BoxIoU,
    ExactMatch,
    GroupAccuracy,
    OpenAnswerAccuracy,
    SampleMean,
    VQAAccuracy,
    YesF1,
    YesPrecision,
    YesRecall,
    YesShare,
)
from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.boxes import overlap, read_box
from sparsight.evaluation.texts.vqa import vqa_normal
from tests.tiny_benchmarks import VQA_PEOPLE


def score(metric: AnswerMetric, *columns: object) -> float:
    metric.update(*columns)
    return float(metric.compute())


def test_yes_is_what_is_detected() -> None:
    said, right = [0, 0, 0, 1, None], [0, 0, 1, 0, 1]  # two hits, a false alarm, a miss, one that says nothing
    assert score(YesPrecision(), said, right) == pytest.approx(2 / 3)
    assert score(YesRecall(), said, right) == pytest.approx(2 / 3)
    assert score(YesF1(), said, right) == pytest.approx(2 / 3)
    assert score(YesShare(), said, right) == pytest.approx(3 / 5)
    for metric in (YesPrecision(), YesRecall(), YesF1()):
        assert score(metric, [1, 1], [1, 1]) == 0  # nothing to detect, nothing detected


def test_a_group_is_right_as_a_whole_and_weighs_the_same_whatever_its_size() -> None:
    groups = ["a", "a", "b", "b", "b", "c"]
    assert score(GroupAccuracy(), [0, 1, 0, 0, 0, 2], [0, 1, 0, 1, 0, 2], groups) == pytest.approx(2 / 3)
    assert score(GroupAccuracy(), [None], [0], ["a"]) == 0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        # given by 3 + 2 ("a net") = 5 people: always three others
        ("net", 1.0),
        ("The net.", 1.0),
        # 2 people: leaving out one of them 1/3, leaving out another 2/3
        ("mesh", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("no", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        # 1 person: left out 0, else 1/3
        ("fence", 9 * (1 / 3) / 10),
        ("nets", 0.0),
    ],
)
def test_vqa_counts_the_people_who_agree(output: str, expected: float) -> None:
    assert score(VQAAccuracy(), [output], [VQA_PEOPLE]) == pytest.approx(expected)


def test_one_accepted_text_must_be_met() -> None:
    assert score(VQAAccuracy(), ["Two!", "three"], [["2"], ["2"]]) == 0.5


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cats, two", "cats 2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("blue/green", "blue green"),
        ("blue / green", "blue green"),
        ("t-shirt", "t shirt"),
        ("3.5", "3.5"),
        ("Mt. Fuji.", "mt fuji"),
        ("don't", "dont"),
        ("dont", "dont"),
        ("it's", "it's"),
        ("its", "its"),
        ("an\nold\tman", "old man"),
        ("?", ""),
    ],
)
def test_vqa_normalises_as_its_authors_do(text: str, normal: str) -> None:
    assert vqa_normal(text) == normal


def test_gqa_wants_the_word_itself() -> None:
    said = ["Left.", "left", "to the left", "LEFT side"]
    assert score(ExactMatch(), said, [["left"]] * 4) == 0.5


@pytest.mark.parametrize(
    ("output", "accepted", "right"),
    [
        ("So the answer is 1200.", ["1,200"], True),
        ("1,200", ["1200"], True),
        ("x = 3.14159", ["3.14"], True),  # two decimals
        ("x = 3.15", ["3.14"], False),
        ("The total is 12 apples", ["twelve", "12"], True),
        ("First 12, so 13", ["12"], False),  # what follows the cue counts
        ("it was photosynthesis", ["Photosynthesis"], True),
        ("C", ["c"], True),
        ("cat", ["c"], False),  # a lone letter is no part of a word
        ("-5", ["-5"], True),
        ("6.02e23", ["6.02e+23"], True),
        ("", ["1"], False),
    ],
)
def test_mmmu_looks_into_the_conclusion(output: str, accepted: list[str], right: bool) -> None:
    assert score(OpenAnswerAccuracy(), [output], [accepted]) == right


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", (0.1, 0.2, 0.5, 0.6)),
        ("It is at (10,20),(50,60).", (10, 20, 50, 60)),
        ("<box>50 60 10 20</box>", (10, 20, 50, 60)),
        ("In picture 1: [5, 6, 7, 8]", (5, 6, 7, 8)),
        ("(.5, .5) to (1, 1)", (0.5, 0.5, 1, 1)),
        ("[1, 2, 3]", None),
        ("there", None),
    ],
)
def test_boxes_are_read_in_the_usual_spellings(text: str, box: tuple[float, ...] | None) -> None:
    assert read_box(text) == box


def test_boxes_by_hand() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    said, right = ["[0, 0, 2, 2]", "[0, 0, 4, 3]", "?"], [["[1, 1, 3, 3]"], ["[0, 0, 4, 4]"], ["[0, 0, 1, 1]"]]
    assert score(BoxIoU(), said, right) == pytest.approx((1 / 7 + 3 / 4 + 0) / 3)
    assert score(BoxAccuracy(), said, right) == pytest.approx(1 / 3)
    assert score(BoxAccuracy(threshold=0.1), said, right) == pytest.approx(2 / 3)


def test_samples_without_a_score_do_not_count() -> None:
    assert score(SampleMean(), [1.0, None, 0.5]) == pytest.approx(0.75)


def test_a_bootstrap_can_draw_any_of_them() -> None:
    for metric, columns in (
        (YesF1(), ([0, 1], [0, 0])),
        (GroupAccuracy(), ([0, 1], [0, 0], ["a", "b"])),
        (SampleMean(), ([1.0, 0.0],)),
    ):
        values_NK = metric.statistics(*columns)
        whole, half = metric.combine(torch.stack([values_NK.mean(0), values_NK[:1].mean(0)]))
        assert float(half) == 1.0 and 0 < float(whole) < 1


@pytest.mark.parametrize(
    ("text", "pope", "mme"),
    [
        ("Yes", 0, 0),
        ("No.", 1, 1),
        ("no, there is none", 1, 1),
        ("There is not. Yes!", 1, None),
        ("yes, no doubt", 1, 0),
        ("NO", 0, 1),  # POPE's authors look for No, no and not
        ("y", 0, 0),
        ("N.", 0, 1),
        ("I see a dog", 0, None),
        ("", 0, None),
        ("not at all", 1, 1),
    ],
)
def test_yes_and_no_are_read_as_the_authors_of_pope_and_mme_do(text: str, pope: int, mme: int | None) -> None:
    assert (pope_yes_no(text), mme_yes_no(text)) == (pope, mme)
