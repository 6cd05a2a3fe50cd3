"""How a question is put in several runs."""

from __future__ import annotations

from typing import Any

import pytest

from sparsight.evaluation.questions.variant import MARKS, Perturbation, Variant, variant

ASKED: dict[str, Any] = {"seed": 0, "task": "t", "instructions": 5, "wordings": 2, "options": 4, "marks": "upper"}


def put(sample: str = "s", run: int = 0, **options: Any) -> Variant:
    return variant(**{**ASKED, "sample": sample, "run": run, "perturbation": Perturbation(), **options})


def test_the_first_run_keeps_order_and_marks() -> None:
    assert put().order == (0, 1, 2, 3)
    assert put().marks == "upper"


def test_five_runs_use_five_instructions_and_all_wordings() -> None:
    runs = [put(run=run) for run in range(5)]
    assert {each.instruction for each in runs} == {0, 1, 2, 3, 4}
    assert {each.wording for each in runs} == {0, 1}


def test_samples_begin_with_different_instructions() -> None:
    assert {put(sample=str(number)).instruction for number in range(40)} == {0, 1, 2, 3, 4}


def test_later_runs_shuffle_options_and_marks() -> None:
    runs = [put(sample=str(number), run=1 + number % 4) for number in range(60)]
    assert len({each.order for each in runs}) > 10
    assert {each.marks for each in runs} == set(MARKS)
    assert all(sorted(each.order) == [0, 1, 2, 3] for each in runs)


@pytest.mark.parametrize("what", ["instructions", "options", "marks"])
def test_each_change_can_be_switched_off_alone(what: str) -> None:
    runs = [put(str(n), run, perturbation=Perturbation(**{what: False})) for n in range(10) for run in range(5)]
    first = [put(str(n), 0) for n in range(10) for _ in range(5)]
    changed = {
        "instructions": [
            (a.instruction, a.wording) != (b.instruction, b.wording) for a, b in zip(runs, first, strict=True)
        ],
        "options": [a.order != b.order for a, b in zip(runs, first, strict=True)],
        "marks": [a.marks != b.marks for a, b in zip(runs, first, strict=True)],
    }
    assert [name for name, moves in changed.items() if not any(moves)] == [what]


def test_random_marks_are_random_in_the_first_run_too() -> None:
    assert {put(sample=str(number), marks="random").marks for number in range(30)} == set(MARKS)


def test_everything_follows_from_seed_task_sample_and_run() -> None:
    assert put(run=3) == put(run=3)
    others = [put(run=3, seed=1), put(run=3, task="u"), put(run=3, sample="r"), put(run=4)]
    assert all(put(run=3) != other for other in others)


def test_many_options_are_never_marked_by_too_few_digits() -> None:
    runs = [put(sample=str(number), run=1, options=12) for number in range(40)]
    assert {each.marks for each in runs} == {"lower", "upper"}
    assert len(runs[0].shown(tuple(map(str, range(12))))) == 12


def test_more_options_than_marks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"12 options are more than .* number: 9"):
        Variant(0, 0, tuple(range(12)), "number").shown(tuple(map(str, range(12))))


def test_options_are_shown_in_the_order_of_the_variant() -> None:
    assert Variant(0, 0, (2, 0, 1), "lower").shown(("x", "y", "z")) == [("a", "z"), ("b", "x"), ("c", "y")]
