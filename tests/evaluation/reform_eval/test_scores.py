"""Scores of answers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsight.evaluation.questions.scores import ScoreKey
from sparsight.evaluation.reform_eval.scores import scores_of
from tests.tiny_evaluation import TASK, weighed


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


def test_the_same_samples_are_drawn_for_every_run() -> None:
    """A model that knows one more sample gains in the draws that hold it, by as much as they hold it."""
    base = [weighed(str(n), right=n % 3 == 0) for n in range(10)]
    better = [weighed(str(n), right=n % 3 == 0 or n == 4) for n in range(10)]
    alone = [weighed(str(n), right=n == 4) for n in range(10)]
    draws = [scores_of(each, [TASK], resamples=300) for each in (base, better, alone)]
    base_R, better_R, alone_R = (each[ScoreKey("likelihood", "task", "talk", "accuracy")].draws_R for each in draws)
    assert better_R - base_R == pytest.approx(alone_R)
    assert 0.25 < (alone_R == 0).mean() < 0.45  # a sample is missing from 0.9^10 = 35 % of the draws


def test_questions_of_a_dialogue_are_drawn_together() -> None:
    """One of three questions that are right, one of a single one that is wrong: 3 of 4, all or none of the drawn."""
    talk = [weighed(f"a_{turn}", right=True, turn=turn, dialogue="a") for turn in range(3)]
    answers = [*talk, weighed("b_0", right=False, turn=0, dialogue="b")]
    found = scores_of(answers, [TASK], resamples=200)
    assert found[ScoreKey("likelihood", "task", "talk", "accuracy")].value == 0.75
    assert set(found[ScoreKey("likelihood", "task", "talk", "accuracy")].draws_R) == {0.0, 0.75, 1.0}


def test_dialogues_that_differ_widen_the_interval_of_the_slope() -> None:
    """Half of them get better from turn to turn, half worse, however many turns they have."""
    answers = [
        weighed(f"{n}_{turn}", right=(turn >= 2) == (n % 2 == 0), turn=turn, dialogue=str(n))
        for n in range(6)
        for turn in range(4)
    ]
    slope = ScoreKey("likelihood", "task", "talk", "turn_slope")
    low, high = scores_of(answers, [TASK], resamples=500)[slope].interval
    alone = [{name: value for name, value in each.items() if name != "dialogue"} for each in answers]
    low_alone, high_alone = scores_of(alone, [TASK], resamples=500)[slope].interval
    assert high - low > 1.3 * (high_alone - low_alone)
