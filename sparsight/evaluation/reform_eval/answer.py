"""A model's answers to the questions of a batch, as plain data that a file can keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsight.evaluation.reform_eval.parse import parse_choice
from sparsight.evaluation.reform_eval.perturb import Variant
from sparsight.evaluation.reform_eval.sample import Formulation, Method
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.write import Written, write_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Unit(NamedTuple):
    """One sample in one run by one method: what is asked, and what would be right.

    Args:
        task: Name of the task.
        sample: Id of the sample.
        dialogue: Id of its dialogue.
        run: Number of the run.
        method: Whether the answer is written or weighed.
        formulation: The form of the question.
        question: Its text, in the wording of this run.
        pictures: How many belong to it.
        options: Options of the sample, in their own order.
        answer: Position of the right one.
        references: Accepted texts.
        turn: Number of the question in its dialogue.
        variant: How it is put.
    """

    task: str
    sample: str
    dialogue: str | None
    run: int
    method: Method
    formulation: Formulation
    question: str
    pictures: int
    options: tuple[str, ...]
    answer: int | None
    references: tuple[str, ...]
    turn: int | None
    variant: Variant

    @property
    def key(self) -> str:
        """Its name among all units of an evaluation."""
        return unit_key(self.task, self.sample, self.run, self.method)


def unit_key(task: str, sample: str, run: int, method: Method) -> str:
    """Name of a unit."""
    return f"{method}/{task}/{run}/{sample}"


def answer_units(model: PreTrainedModel, tokenizer: Any, batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Let a model answer a batch of a ReformEvalDataModule; plain data by the key of each unit.

    ``choice`` is the position of the chosen option among the sample's own, or none. Written answers have ``text``, and
    choices among them ``in_format``; behind a thought, also ``thought``, and whether it is ``unfinished``. Weighed ones
    have ``log_likelihoods`` (sums in nats, in the options' own order) and ``tokens`` of every option, and
    ``choice_by_token`` by the mean over tokens.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        batch: With ``inputs``, ``units``, ``candidates`` (token ids; empty where answers are written) and
            ``new_tokens``.

    Raises:
        ValueError: Log-likelihoods are not finite, of which the first would pass for the largest.
    """
    units: list[Unit] = batch["units"]
    if units[0].method == "likelihood":
        logs = candidate_log_likelihoods(model, batch["inputs"], batch["candidates"])
        found = [_weighed(unit, log, ids) for unit, log, ids in zip(units, logs, batch["candidates"], strict=True)]
    else:
        texts = write_answers(model, tokenizer, batch["inputs"], new_tokens=batch["new_tokens"])
        found = [_written(unit, text) for unit, text in zip(units, texts, strict=True)]
    return {unit.key: _asked(unit) | answer for unit, answer in zip(units, found, strict=True)}


def _asked(unit: Unit) -> dict[str, Any]:
    asked: dict[str, Any] = {"task": unit.task, "sample": unit.sample, "run": unit.run, "method": unit.method}
    asked |= {name: value for name, value in (("dialogue", unit.dialogue), ("turn", unit.turn)) if value is not None}
    asked |= {"instruction": unit.variant.instruction, "wording": unit.variant.wording}
    asked |= {"pictures": unit.pictures, "question": unit.question}
    if unit.formulation != "SingleChoice":
        return asked | {"references": list(unit.references)}
    shown = {"order": list(unit.variant.order), "marks": unit.variant.marks} if unit.method == "generation" else {}
    target = {"options": list(unit.options), "answer": unit.answer}
    return asked | shown | target


def _weighed(unit: Unit, logs: list[float], ids: list[list[int]]) -> dict[str, Any]:
    if not all(math.isfinite(log) for log in logs):
        raise ValueError(
            f"task {unit.task}, sample {unit.sample}: log-likelihoods are {logs}. The model does not compute numbers: "
            "are its weights sound? In float16 they may overflow, set model.dtype to bfloat16 or float32"
        )
    tokens = [len(option) for option in ids]
    by_token = [log / count for log, count in zip(logs, tokens, strict=True)]
    return {
        "choice": logs.index(max(logs)),
        "choice_by_token": by_token.index(max(by_token)),
        "log_likelihoods": [round(log, 5) for log in logs],
        "tokens": tokens,
    }


def _written(unit: Unit, written: Written) -> dict[str, Any]:
    thought, answer, unfinished = written.parts()
    found: dict[str, Any] = {"text": answer}
    if thought or unfinished:
        found |= {"thought": thought, "unfinished": unfinished}
    if unit.formulation != "SingleChoice":
        return found
    place, in_format = parse_choice(written.text, unit.variant.shown(unit.options), opened=written.opened)
    return found | {"choice": None if place is None else unit.variant.order[place], "in_format": in_format}
