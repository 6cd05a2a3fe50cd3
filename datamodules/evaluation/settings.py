"""What a task was made with, as plain data for a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any

from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.records import Records
from sparsight.evaluation.questions.question import Method


def settings_of(task: EvaluationTask, methods: Iterable[Method]) -> dict[str, Any]:
    """Class and options of a task and of its sources, and its instructions, to which answers refer by number.

    Args:
        task: An opened task.
        methods: By which its questions are answered.
    """
    instructions = {
        method: {
            name: list(task.asked_by(method, with_images=has))
            for name, has in (("with_pictures", True), ("without_pictures", False))
        }
        for method in methods
    }
    found: dict[str, Any] = _plain(task) | {"instructions": instructions}
    return found


def _plain(part: object) -> Any:
    if isinstance(part, EvaluationTask | Records):
        return {"class": type(part).__name__} | _plain({n: v for n, v in vars(part).items() if not n.startswith("_")})
    if is_dataclass(part) and not isinstance(part, type):
        return _plain(vars(part))
    if isinstance(part, dict):
        return {str(name): _plain(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(value) for value in part]
    return part if part is None or isinstance(part, bool | int | float | str) else str(part)
