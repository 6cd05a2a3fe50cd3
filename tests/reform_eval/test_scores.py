"""Scores of answers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsight.reform_eval.scores import ScoreKey, scores_of

TASK = {"name": "talk", "dimension": "dialogue", "formulation": "SingleChoice"}


def weighed(sample: str, *, right: bool, run: int = 0, **more: Any) -> dict[str, Any]:
    choice = int(not right)
    asked = {"method": "likelihood", "task": "talk", "sample": sample, "run": run, "options": ["a", "b"], "answer": 0}
    return asked | {"choice": choice, "choice_by_token": choice} | more


def value(answers: list[dict[str, Any]], metric: str) -> float:
    return scores_of(answers, [TASK], resamples=100)[ScoreKey("likelihood", "task", "talk", metric)].value


def test_a_question_without_history_is_the_first_of_its_dialogue() -> None:
    """A source may hold dialogues of one question, which do not number it."""
    answers = [weighed("0", right=True), weighed("1_0", right=True, turn=0), weighed("1_1", right=False, turn=1)]
    assert value(answers, "turn_slope") == pytest.approx(-1)
    assert value(answers[::-1], "accuracy") == pytest.approx(2 / 3)


def test_every_sample_counts_once_whatever_its_number_of_runs() -> None:
    answers = [weighed("0", right=True, run=run) for run in range(3)] + [weighed("1", right=False)]
    assert value(answers, "accuracy") == 0.5
    assert np.isin(
        scores_of(answers, [TASK], resamples=100)[ScoreKey("likelihood", "all", "", "score")].draws_R, (0, 0.5, 1)
    ).all()
