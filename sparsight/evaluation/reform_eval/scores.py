"""Scores of an evaluation: of every task, and from there up the taxonomy, each with draws of a bootstrap.

The draws of two evaluations of the same samples belong together one by one, so that their differences can be taken.

Shape legend: N samples, D dialogues (a sample outside of any is one by itself), K statistics of a metric, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsight.common.bootstrap import interval, resampled_means, seed_of
from sparsight.evaluation.reform_eval.taxonomy import CAPTIONS, abilities
from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.bleu import BLEU
from sparsight.evaluation.texts.choices import ChoiceAccuracy, FormatHitRate, Instability, UnfinishedThoughts
from sparsight.evaluation.texts.cider import CIDEr
from sparsight.evaluation.texts.rouge import RougeL
from sparsight.evaluation.texts.turns import TurnCorrelation, TurnSlope
from sparsight.evaluation.texts.word_accuracy import KeyInformationAccuracy, WordAccuracy

HEADLINES = {
    "SingleChoice": "accuracy",
    "OCROpenEnded": "word_accuracy",
    "KIEOpenEnded": "word_accuracy",
    "Generation": "cider",
}
Answer = Mapping[str, Any]


class ScoreKey(NamedTuple):
    """What a score is of.

    Args:
        method: ``likelihood`` or ``generation``.
        level: ``task``, ``dimension``, ``ability`` or ``all``.
        name: Of the task, dimension or ability; empty for all.
        metric: What is measured; ``score`` above the level of tasks.
    """

    method: str
    level: str
    name: str
    metric: str


@dataclass(frozen=True)
class Estimate:
    """A score, and what it would have been with other samples of the same kind.

    Args:
        value: The score.
        draws_R: Scores of bootstrap draws.
    """

    value: float
    draws_R: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """Between which 95 % of the draws lie."""
        return interval(self.draws_R)


def scores_of(
    answers: Iterable[Answer], tasks: Sequence[Mapping[str, Any]], *, resamples: int
) -> dict[ScoreKey, Estimate]:
    """Scores of what was answered.

    The score of a dimension is the mean over its tasks of their main metric, that of an ability the mean over its
    dimensions, and that of all the mean over the dimensions that need pictures. CIDEr is no share of anything, so
    captions enter no mean: the dimension of description has its own scale.

    Args:
        answers: Plain data of :func:`sparsight.evaluation.reform_eval.answer.answer_units`.
        tasks: Plain data with ``name``, ``dimension`` and ``formulation``.
        resamples: Number of draws R.
    """
    by_task: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_task.setdefault((answer["method"], answer["task"]), []).append(answer)
    found: dict[ScoreKey, Estimate] = {}
    for method in dict.fromkeys(method for method, _ in by_task):
        main: dict[str, list[Estimate]] = {}
        for task in tasks:
            given = by_task.get((method, task["name"]))
            if given is None:
                continue
            estimates = _of_task(given, task, resamples=resamples)
            found |= {ScoreKey(method, "task", task["name"], metric): each for metric, each in estimates.items()}
            main.setdefault(task["dimension"], []).append(estimates[HEADLINES[task["formulation"]]])
        found |= _rolled_up(method, main)
    return found


def _of_task(answers: Sequence[Answer], task: Mapping[str, Any], *, resamples: int) -> dict[str, Estimate]:
    samples = {sample: number for number, sample in enumerate(sorted({answer["sample"] for answer in answers}))}
    dialogue_of = {samples[answer["sample"]]: _dialogue(answer) for answer in answers}
    dialogues = {dialogue: number for number, dialogue in enumerate(sorted(set(dialogue_of.values())))}
    dialogue_N = np.array([dialogues[dialogue_of[number]] for number in range(len(samples))])
    runs: dict[int, list[Answer]] = {}
    for answer in answers:
        runs.setdefault(answer["run"], []).append(answer)

    def drawn(metric: AnswerMetric, values_NK: np.ndarray) -> Estimate:
        return _estimate(metric, values_NK, dialogue_N, task=task["name"], resamples=resamples)

    def estimate(metric: AnswerMetric, *columns: Callable[[Answer], Any]) -> Estimate:
        """A sample's numbers are the means over its runs, so that draws are not of runs."""
        sums_NK, counts_N = np.zeros((len(samples), metric.width)), np.zeros(len(samples))
        for given in runs.values():
            places = [samples[answer["sample"]] for answer in given]
            sums_NK[places] += metric.statistics(*([column(answer) for answer in given] for column in columns)).numpy()
            counts_N[places] += 1
        return drawn(metric, sums_NK / counts_N[:, None])

    found: dict[str, Estimate] = {}
    if any("thought" in answer for answer in answers):
        found["unfinished_thoughts"] = estimate(UnfinishedThoughts(), lambda answer: answer.get("unfinished", False))
    if task["formulation"] != "SingleChoice":
        metrics = _metrics_of_texts(task["formulation"])
        texts = {name: estimate(each, itemgetter("text"), itemgetter("references")) for name, each in metrics.items()}
        return texts | found
    right = itemgetter("answer")
    found = {"accuracy": estimate(ChoiceAccuracy(), itemgetter("choice"), right)} | found
    if "choice_by_token" in answers[0]:
        found["accuracy_by_token"] = estimate(ChoiceAccuracy(), itemgetter("choice_by_token"), right)
    if "in_format" in answers[0]:
        found["format_hit_rate"] = estimate(FormatHitRate(), lambda a: a["choice"] if a["in_format"] else None, right)
    turns = 1 + max(map(_turn, answers))
    if turns > 1:
        found["turn_correlation"] = estimate(TurnCorrelation(turns=turns), _is_right, _turn)
        found["turn_slope"] = estimate(TurnSlope(turns=turns), _is_right, _turn)
    if len(runs) > 1:
        said: list[list[str]] = [[] for _ in samples]
        for answer in answers:
            said[samples[answer["sample"]]].append(_said(answer))
        found["instability"] = drawn(Instability(), Instability().statistics(said).numpy())
    return found


def _estimate(
    metric: AnswerMetric, values_NK: np.ndarray, dialogue_N: np.ndarray, *, task: str, resamples: int
) -> Estimate:
    """A score of means over samples, with draws of dialogues, each of which brings all of its questions along."""
    sums_DK, counts_D1 = np.zeros((dialogue_N.max() + 1, metric.width)), np.zeros((dialogue_N.max() + 1, 1))
    np.add.at(sums_DK, dialogue_N, values_NK)
    np.add.at(counts_D1, dialogue_N, 1)
    drawn = resampled_means(np.concatenate([sums_DK, counts_D1], axis=1), resamples=resamples, seed=seed_of(task))
    means_RK = drawn[:, :-1] / drawn[:, -1:]
    both = metric.combine(torch.from_numpy(np.concatenate([values_NK.mean(0, keepdims=True), means_RK]))).numpy()
    return Estimate(float(both[0]), both[1:])


def _metrics_of_texts(formulation: str) -> dict[str, AnswerMetric]:
    if formulation == "Generation":
        return {"cider": CIDEr(), "bleu_4": BLEU(), "rouge_l": RougeL()}
    return {"word_accuracy": KeyInformationAccuracy() if formulation == "KIEOpenEnded" else WordAccuracy()}


def _is_right(answer: Answer) -> float:
    return float(answer["choice"] == answer["answer"])


def _dialogue(answer: Answer) -> tuple[bool, str]:
    return "dialogue" in answer, answer.get("dialogue", answer["sample"])


def _turn(answer: Answer) -> int:
    return int(answer.get("turn", 0))  # a dialogue of one question need not number it


def _said(answer: Answer) -> str:
    """The option that was meant; what missed every option stands for itself."""
    return str(answer["text"] if answer["choice"] is None else answer["options"][answer["choice"]])


def _rolled_up(method: str, main: Mapping[str, Sequence[Estimate]]) -> dict[ScoreKey, Estimate]:
    dimensions = {name: _mean(estimates) for name, estimates in main.items()}
    found = {ScoreKey(method, "dimension", name, "score"): each for name, each in dimensions.items()}
    seen = []
    for ability, names in abilities().items():
        shares = [dimensions[name] for name in names if name in dimensions and name != CAPTIONS]
        if shares:
            found[ScoreKey(method, "ability", ability, "score")] = _mean(shares)
            seen += shares if ability != "language" else []
    if seen:
        found[ScoreKey(method, "all", "", "score")] = _mean(seen)
    return found


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(
        float(np.mean([each.value for each in estimates])), np.mean([each.draws_R for each in estimates], axis=0)
    )
