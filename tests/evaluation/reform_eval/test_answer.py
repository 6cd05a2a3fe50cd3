"""What is kept of a model's answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparsight.common.finite import NonFiniteError
from sparsight.evaluation.questions import answer
from sparsight.evaluation.questions.answer import answer_questions
from sparsight.evaluation.questions.question import Question
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.answer import plain_answers


def weighed(monkeypatch: pytest.MonkeyPatch, logs: list[float], **changes: Any) -> dict[str, Any]:
    """The answer of a model that gives an option of one token and one of four these log-likelihoods."""
    question = Question(
        task="greys",
        sample="7",
        text="How dark?",
        images=1,
        options=("black", "a light grey"),
        answer=1,
        run=1,
        variant=Variant(instruction=3, wording=2, order=(0, 1), marks="upper"),
    )
    monkeypatch.setattr(answer, "candidate_log_likelihoods", lambda *_: [logs])
    batch = {"inputs": {}, "questions": [question._replace(**changes)], "candidates": [[[5], [6, 7, 8, 9]]]}
    model: Any = None  # its log-likelihoods are given
    (found,) = plain_answers(answer_questions(model, None, batch, methods=["likelihood"], new_tokens=0)).values()
    return found


def test_sums_and_means_over_tokens_may_choose_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    found = weighed(monkeypatch, [-3.0, -4.0])
    assert (found["choice"], found["choice_by_token"]) == (0, 1)
    assert (found["log_likelihoods"], found["tokens"]) == ([-3.0, -4.0], [1, 4])
    assert weighed(monkeypatch, [-3.0, -13.0])["choice_by_token"] == 0


def test_an_answer_tells_how_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = weighed(monkeypatch, [-3.0, -4.0])
    told = {
        "question": "How dark?",
        "wording": 2,
        "instruction": 3,
        "pictures": 1,
        "options": ["black", "a light grey"],
    }
    assert {name: found[name] for name in told} == told
    assert "dialogue" not in found and "turn" not in found
    found = weighed(monkeypatch, [-3.0, -4.0], dialogue="talk", turn=0)
    assert (found["dialogue"], found["turn"]) == ("talk", 0)


@pytest.mark.parametrize("logs", [[math.nan, -1.0], [-math.inf, -math.inf], [-1.0, -math.inf]])
def test_log_likelihoods_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch, logs: list[float]) -> None:
    with pytest.raises(NonFiniteError, match="task greys, sample 7: log-likelihoods are"):
        weighed(monkeypatch, logs)
