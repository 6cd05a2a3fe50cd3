"""Scores of ReForm-Eval: of its tasks, and from there up the taxonomy, each with draws of a bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsight.evaluation.questions.rules import RULES
from sparsight.evaluation.questions.scores import Answer, Estimate, ScoreKey, mean_estimate, task_scores
from sparsight.evaluation.reform_eval.taxonomy import CAPTIONS, abilities

HEADLINES = {
    "SingleChoice": "accuracy",
    "OCROpenEnded": "word_accuracy",
    "KIEOpenEnded": "word_accuracy",
    "Generation": "cider",
}


def headline(task: Mapping[str, Any], method: str) -> str:
    """The metric that stands for a task, by its plain data, in means."""
    return RULES[task["rule"]].main(method) if "rule" in task else HEADLINES[task["formulation"]]


def scores_of(
    answers: Iterable[Answer], tasks: Sequence[Mapping[str, Any]], *, resamples: int
) -> dict[ScoreKey, Estimate]:
    """Scores of what was answered.

    The score of a dimension is the mean over its tasks of their main metric, that of an ability the mean over its
    dimensions, and that of all the mean over the dimensions that need images. CIDEr is no share of anything, so
    captions enter no mean: the dimension of description has its own scale. Benchmarks have a mean of their own.

    Args:
        answers: Plain data of ``sparsight.evaluation.reform_eval.answer.plain_answers``.
        tasks: Plain data with ``name``, ``dimension`` and ``formulation``, and of benchmarks their ``rule``.
        resamples: Number of draws R.
    """
    of_tasks = task_scores(
        answers,
        resamples=resamples,
        formulations={task["name"]: task["formulation"] for task in tasks},
        rules={task["name"]: task["rule"] for task in tasks if "rule" in task},
    )
    found: dict[ScoreKey, Estimate] = {}
    for method in dict.fromkeys(key.method for key in of_tasks):
        found |= {key: each for key, each in of_tasks.items() if key.method == method}
        main: dict[str, list[Estimate]] = {}
        for task in tasks:
            found_main = of_tasks.get(ScoreKey(method, "task", task["name"], headline(task, method)))
            if found_main is not None:
                main.setdefault(task["dimension"], []).append(found_main)
        found |= _rolled_up(method, main)
    return found


def _rolled_up(method: str, main: Mapping[str, Sequence[Estimate]]) -> dict[ScoreKey, Estimate]:
    dimensions = {name: mean_estimate(estimates) for name, estimates in main.items()}
    found = {ScoreKey(method, "dimension", name, "score"): each for name, each in dimensions.items()}
    seen = []
    for ability, names in abilities().items():
        shares = [dimensions[name] for name in names if name in dimensions and name != CAPTIONS]
        if shares:
            found[ScoreKey(method, "ability", ability, "score")] = mean_estimate(shares)
            seen += shares if ability not in ("language", "benchmarks") else []
    if seen:
        found[ScoreKey(method, "all", "", "score")] = mean_estimate(seen)
    return found
