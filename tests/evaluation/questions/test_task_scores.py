"""Accuracies by task, and what counts as the same answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.questions.task_scores import Item, TaskScores
from sparsight.evaluation.questions.wording import same_answer


def item(index: int, **options: Any) -> Item:
    plain: dict[str, Any] = {"task": "naming", "visual": True, "answer": 0, "candidates": 2, "log_likelihood": -1.0}
    return Item(**{"index": index, **plain, "tokens": 2, "likeliest": 0, "likeliest_by_token": 0, **options})


def test_groups_are_means_over_tasks_not_over_items() -> None:
    scores = TaskScores()
    scores.add([item(0), item(1), item(2), item(3, task="counting", likeliest=1)])
    scores.add([item(4, task="opposites", visual=False, likeliest=1, likeliest_by_token=0)])
    found = scores.accuracies()
    assert found["likelihood/naming"] == 1 and found["likelihood/counting"] == 0
    assert found["likelihood/visual"] == 0.5
    assert found["likelihood/text"] == found["likelihood/opposites"] == 0
    assert found["likelihood_by_token/text"] == 1
    assert not any(name.startswith("generation") for name in found)


def test_tasks_of_any_name_are_told_from_the_means() -> None:
    scores = TaskScores()
    scores.add([item(0, task=""), item(1, likeliest=1), item(2, task="text"), item(3, task="other", visual=False)])
    found = scores.accuracies()
    assert found["likelihood/unnamed"] == found["likelihood/text (task)"] == found["likelihood/text"] == 1.0
    assert found["likelihood/visual"] == pytest.approx(2 / 3)


def test_loss_is_a_mean_over_tokens() -> None:
    scores = TaskScores()
    scores.add([item(0, log_likelihood=-6.0, tokens=3), item(1, log_likelihood=-2.0, tokens=1)])
    assert scores.loss() == 2.0


def test_items_with_nothing_to_choose_count_in_the_loss_alone() -> None:
    scores = TaskScores()
    scores.add([item(0, candidates=1, generated="a bag", generated_right=True)])
    assert scores.accuracies() == {"generation/naming": 1.0, "generation/visual": 1.0}
    assert scores.loss() == 0.5


def test_an_item_that_comes_twice_counts_once() -> None:
    scores = TaskScores()
    scores.add([item(1), item(0, likeliest=1)])
    scores.add([item(1)])
    scores.gather()
    assert list(scores.items) == [0, 1]
    assert scores.accuracies()["likelihood/naming"] == 0.5


def test_saved_scores_are_read_again_and_others_refused(tmp_path: Path) -> None:
    scores = TaskScores()
    scores.add([item(0), item(1, likeliest=1)])
    scores.save(tmp_path / "scores.json")
    assert TaskScores.load(tmp_path / "scores.json").items == scores.items
    with pytest.raises(FileNotFoundError, match="sparsight validate"):
        TaskScores.load(tmp_path / "none.json")
    contents: list[Any] = [[], {"version": 2, "items": []}, {"version": 1}, {"version": 1, "items": [{"index": 0}]}]
    for content in contents:
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"other\.json holds no scores"):
            TaskScores.load(tmp_path / "other.json")


def test_shares_of_a_score_are_of_the_same_items() -> None:
    own, reference = TaskScores(), TaskScores()
    own.add([item(0), item(1, likeliest=1, likeliest_by_token=1), item(2, task="counting")])
    reference.add([item(0), item(1), item(2, task="counting", likeliest=1)])
    kept = own.kept(reference)
    assert kept["likelihood/naming"] == 0.5 and kept["likelihood/visual"] == 1.5
    assert kept["likelihood/counting"] is None  # the reference has none right
    for other in ({"task": "yes_no"}, {"answer": 1}, {"candidates": 3}):
        different = TaskScores()
        different.add([*reference.items.values(), item(2, **{"task": "counting"} | other)])
        with pytest.raises(ConfigurationError, match=r"not the same 3 .*: 1 differ, the first of them item 2: answer"):
            own.kept(different)
    for fewer, more in ((own, TaskScores()), (TaskScores(), own)):
        with pytest.raises(
            ConfigurationError, match=r"3 differ, the first of them item 0: (none there|answer .* none)"
        ):
            fewer.kept(more)


@pytest.mark.parametrize(
    ("written", "right", "same"),
    [
        ("Bag.", "bag", True),
        (" a T-shirt", "T-shirt", True),
        ("The ankle boot is black", "Ankle boot", True),
        ("Nothing", "no", False),
        ("no", "nothing", False),
        ("", "bag", False),
        ("It is a bag", "bag", True),
        ("**Answer:** a bag", "bag", True),
        ("The answer is \\boxed{\\text{B}}.", "B", True),
        ("I see a bag", "bag", False),
        ("Yes, it is", "yes", True),
        ("Yes and no", "yes", False),
        ("yes or no", "yes", False),
        ("no", "Yes and no", False),
        ("Yes and nothing", "yes", True),
        ("Three bags", "3", True),
        ("3", "three", True),
        ("1,000 bags", "1000", True),
        ("1,00", "100", False),
        ("A", "A", True),
        ("A coat", "A", True),
        ("(A) ankle boot", "a", True),
        ("A coat", "coat", True),
        ("B", "A", False),
        ("3.5", "3", False),
        ("-5", "5", False),
        ("3rd", "3", False),
        ("12 legs.", "12", True),
    ],
)
def test_answers_are_compared_by_whole_words(written: str, right: str, same: bool) -> None:
    assert same_answer(written, right) == same
