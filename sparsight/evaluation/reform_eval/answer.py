"""Answers to the questions of ReForm-Eval as plain data that a file can keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparsight.evaluation.questions.answer import Answered, Weighed
from sparsight.evaluation.questions.question import Method, Question
from sparsight.evaluation.questions.rules import RULES
from sparsight.evaluation.reform_eval.parse import parse_choice
from sparsight.lvlm.answer.write import Written


def plain_answers(answered: Iterable[Answered]) -> dict[str, dict[str, Any]]:
    """Answers as plain data, by the keys of their questions.

    ``choice`` is the position of the chosen option among the sample's own, or none. Written answers have ``text``, and
    choices among them ``in_format``; behind a thought, also ``thought``, and whether it is ``unfinished``. Weighed ones
    have ``log_likelihoods`` (sums in nats, in the options' own order) and ``tokens`` of every option, and
    ``choice_by_token`` by the mean over tokens.
    """
    found: dict[str, dict[str, Any]] = {}
    for question, weighed, written in answered:
        if weighed is not None:
            found[question.key("likelihood")] = _asked(question, "likelihood") | _weighed(weighed)
        if written is not None:
            found[question.key("generation")] = _asked(question, "generation") | _written(question, written)
    return found


def _asked(question: Question, method: Method) -> dict[str, Any]:
    assert question.variant is not None  # a suite says how it puts every question
    asked: dict[str, Any] = {"task": question.task, "sample": question.sample, "run": question.run, "method": method}
    dialogue = (("dialogue", question.dialogue), ("turn", question.turn))
    asked |= {name: value for name, value in dialogue if value is not None}
    asked |= {"instruction": question.variant.instruction, "wording": question.variant.wording}
    asked |= {"pictures": question.images, "question": question.text}
    if question.categories:
        asked["categories"] = list(question.categories)
    if not _is_choice(question, method):
        return asked | {"references": list(question.references)}
    shown = {"order": list(question.variant.order), "marks": question.variant.marks} if method == "generation" else {}
    target = {"options": list(question.options), "answer": question.answer}
    return asked | shown | target


def _is_choice(question: Question, method: Method) -> bool:
    """Whether one of the options is the answer; those of a free question of a benchmark are only weighed."""
    return question.formulation == "SingleChoice" and (method == "likelihood" or not question.references)


def _weighed(weighed: Weighed) -> dict[str, Any]:
    return {
        "choice": weighed.choice,
        "choice_by_token": weighed.choice_by_token,
        "log_likelihoods": [round(log, 5) for log in weighed.log_likelihoods],
        "tokens": weighed.tokens,
    }


def _written(question: Question, written: Written) -> dict[str, Any]:
    thought, answer, unfinished = written.parts()
    found: dict[str, Any] = {"text": answer}
    if thought or unfinished:
        found |= {"thought": thought, "unfinished": unfinished}
    if not _is_choice(question, "generation"):
        return found
    read = RULES[question.rule].read if question.rule else None
    if read is not None:
        return found | {"choice": None if unfinished else read(answer)}
    assert question.variant is not None
    shown = question.variant.shown(question.options)
    place, in_format = parse_choice(written.text, shown, opened=written.opened)
    return found | {"choice": None if place is None else question.variant.order[place], "in_format": in_format}
