"""A model answers a batch of questions: by the likelihood of their options, and by writing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsight.common.finite import NonFiniteError
from sparsight.evaluation.questions.question import Method, Question
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.write import Written, write_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Weighed(NamedTuple):
    """How likely a model finds the options of a question.

    Args:
        log_likelihoods: Of every option, summed over its tokens, in nats.
        tokens: How many tokens every option has.
    """

    log_likelihoods: list[float]
    tokens: list[int]

    @property
    def choice(self) -> int:
        """Position of the likeliest option."""
        return self.log_likelihoods.index(max(self.log_likelihoods))

    @property
    def choice_by_token(self) -> int:
        """Position of the option with the highest mean over its tokens."""
        means = [log / count for log, count in zip(self.log_likelihoods, self.tokens, strict=True)]
        return means.index(max(means))


class Answered(NamedTuple):
    """A question, and what a model answered by the methods that it was asked by."""

    question: Question
    weighed: Weighed | None = None
    written: Written | None = None


def answer_questions(
    model: PreTrainedModel, tokenizer: Any, batch: Mapping[str, Any], *, methods: Collection[Method], new_tokens: int
) -> list[Answered]:
    """Let a model answer the questions of a batch.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        batch: With ``inputs`` (padded on the left), ``questions``, and for likelihoods ``candidates`` (token ids of
            every option).
        methods: Whether options are weighed, answers are written, or both.
        new_tokens: Most tokens of a written answer.

    Raises:
        NonFiniteError: A log-likelihood is not finite, of which the first would pass for the largest.
    """
    questions: list[Question] = batch["questions"]
    weighed: list[Weighed | None] = [None] * len(questions)
    written: list[Written | None] = [None] * len(questions)
    if "likelihood" in methods:
        logs = candidate_log_likelihoods(model, batch["inputs"], batch["candidates"])
        rows = zip(questions, logs, batch["candidates"], strict=True)
        weighed = [_weighed(question, of_row, ids) for question, of_row, ids in rows]
    if "generation" in methods:
        written = [*write_answers(model, tokenizer, batch["inputs"], new_tokens=new_tokens)]
    return [Answered(*row) for row in zip(questions, weighed, written, strict=True)]


def _weighed(question: Question, logs: list[float], ids: list[list[int]]) -> Weighed:
    if not all(map(math.isfinite, logs)):
        raise NonFiniteError(
            f"{question.place}: log-likelihoods are {logs}. The model does not compute numbers: are its weights sound? "
            "In float16 they may overflow, set model.loading.dtype to bfloat16 or float32"
        )
    return Weighed(logs, [len(option) for option in ids])
