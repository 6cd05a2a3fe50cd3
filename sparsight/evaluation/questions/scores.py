"""Scores of tasks, each with draws of a bootstrap, and two scores of equal samples side by side.

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

from sparsight.common.bootstrap import Interval, compare, interval, resampled_means, seed_of
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.questions.rules import RULES, Measure, Rule
from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.bleu import BLEU
from sparsight.evaluation.texts.choices import ChoiceAccuracy, FormatHitRate, Instability, UnfinishedThoughts
from sparsight.evaluation.texts.cider import CIDEr
from sparsight.evaluation.texts.rouge import RougeL
from sparsight.evaluation.texts.turns import TurnCorrelation, TurnSlope
from sparsight.evaluation.texts.word_accuracy import KeyInformationAccuracy, WordAccuracy

Answer = Mapping[str, Any]


class ScoreKey(NamedTuple):
    """What a score is of.

    Args:
        method: ``likelihood`` or ``generation``.
        level: ``task``, ``category``, ``group``, ``dimension``, ``ability`` or ``all``.
        name: Of the task, group, dimension or ability; of a category with its task before it; empty for all.
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


@dataclass(frozen=True)
class Paired:
    """A score beside another one of equal samples; none where something is not defined.

    Args:
        difference: Of ours less theirs.
        between: Between which 95 % of the draws of the difference lie.
        higher: Share of draws in which ours is higher, equal ones counted half.
        kept: Ours as a share of theirs.
        kept_between: Between which 95 % of the draws of that share lie.
    """

    difference: float | None
    between: Interval | None
    higher: float | None
    kept: float | None
    kept_between: Interval | None


def paired(ours: Estimate, theirs: Estimate) -> Paired:
    """Compare a score with another one, draw by draw."""
    drawn = compare(ours.draws_R, theirs.draws_R)
    return Paired(
        difference=_defined(ours.value - theirs.value),
        between=_known(drawn.difference),
        higher=_defined(drawn.higher),
        kept=_defined(ours.value / theirs.value) if theirs.value > 0 else None,
        kept_between=_known(drawn.ratio),
    )


def _defined(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


def _known(found: Interval | None) -> Interval | None:
    return None if found is None or np.isnan(found).any() else found


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over scores, and over their draws one by one."""
    return Estimate(
        float(np.mean([each.value for each in estimates])), np.mean([each.draws_R for each in estimates], axis=0)
    )


def task_scores(
    answers: Iterable[Answer],
    *,
    resamples: int,
    formulations: Mapping[str, Formulation] | None = None,
    rules: Mapping[str, str] | None = None,
) -> dict[ScoreKey, Estimate]:
    """Scores of every task, by every method, in the order in which these are met.

    Args:
        answers: Plain data with ``method``, ``task``, ``sample`` and ``run``; of a choice its ``answer`` and
            ``choice``, of a text ``text`` and ``references``; further ones as
            ``sparsight.evaluation.reform_eval.answer.plain_answers`` gives them.
        resamples: Number of draws R; 0 for none.
        formulations: What the questions of each task ask for, in the order of the result; choices, and the order in
            which tasks are met, if not given.
        rules: Names in ``sparsight.evaluation.questions.rules.RULES`` of the tasks that are benchmarks.
    """
    by_task: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_task.setdefault((answer["method"], answer["task"]), []).append(answer)
    found: dict[ScoreKey, Estimate] = {}
    for method in dict.fromkeys(method for method, _ in by_task):
        for task in dict.fromkeys(task for _, task in by_task) if formulations is None else formulations:
            given = by_task.get((method, task))
            if given is not None and rules is not None and task in rules:
                found |= _of_benchmark(given, task, method, RULES[rules[task]], resamples=resamples)
            elif given is not None:
                formulation = "SingleChoice" if formulations is None else formulations[task]
                estimates = _of_task(given, task, formulation=formulation, resamples=resamples)
                found |= {ScoreKey(method, "task", task, metric): each for metric, each in estimates.items()}
    return found


def category_name(task: str, category: str) -> str:
    """What a category of a task is called in scores."""
    return f"{task}: {category}"


def _of_benchmark(
    answers: Sequence[Answer], task: str, method: str, rule: Rule, *, resamples: int
) -> dict[ScoreKey, Estimate]:
    """What the rule measures of all answers, and of those in each category; sums over categories come last."""
    parts: dict[str, list[Answer]] = {}
    for answer in answers:
        for category in answer.get("categories", ()):
            parts.setdefault(category, []).append(answer)
    measures = rule.measured(answers, method)
    whole = _measured(answers, task, measures, resamples=resamples)
    found = {ScoreKey(method, "task", task, metric): each for metric, each in whole.items()}
    of_category = {
        category: _measured(part, category_name(task, category), measures, resamples=resamples)
        for category, part in sorted(parts.items())
    }
    for metric, wanted in rule.sums.items():
        summands = [
            each[name]
            for category, each in of_category.items()
            if wanted is None or category in wanted
            for name in rule.summed
        ]
        if summands:
            draws_R = 100 * np.sum([each.draws_R for each in summands], axis=0)
            key = ScoreKey(method, "task", task, metric)
            found[key] = Estimate(100 * sum(each.value for each in summands), draws_R)
    for category, estimates in of_category.items():
        name = category_name(task, category)
        found |= {ScoreKey(method, "category", name, metric): each for metric, each in estimates.items()}
    return found


def _measured(
    answers: Sequence[Answer], name: str, measures: Mapping[str, Measure], *, resamples: int
) -> dict[str, Estimate]:
    drawn = _Draws(answers, name, resamples=resamples)
    found = {metric: drawn.estimate(each.metric(), *each.columns) for metric, each in measures.items()}
    if any("thought" in answer for answer in answers):
        found["unfinished_thoughts"] = drawn.estimate(UnfinishedThoughts(), lambda a: a.get("unfinished", False))
    return found


def _of_task(answers: Sequence[Answer], task: str, *, formulation: Formulation, resamples: int) -> dict[str, Estimate]:
    drawn = _Draws(answers, task, resamples=resamples)
    estimate = drawn.estimate
    found: dict[str, Estimate] = {}
    if any("thought" in answer for answer in answers):
        found["unfinished_thoughts"] = estimate(UnfinishedThoughts(), lambda answer: answer.get("unfinished", False))
    if formulation != "SingleChoice":
        metrics = _metrics_of_texts(formulation)
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
    if len(drawn.runs) > 1:
        said: list[list[str]] = [[] for _ in drawn.samples]
        for answer in answers:
            said[drawn.samples[answer["sample"]]].append(_said(answer))
        found["instability"] = drawn.of(Instability(), Instability().statistics(said).numpy())
    return found


class _Draws:
    """Estimates of metrics of the answers of a task, all drawn alike."""

    def __init__(self, answers: Sequence[Answer], task: str, *, resamples: int) -> None:
        self.task = task
        self.resamples = resamples
        self.samples = {name: number for number, name in enumerate(sorted({answer["sample"] for answer in answers}))}
        dialogue_of = {self.samples[answer["sample"]]: _dialogue(answer) for answer in answers}
        dialogues = {dialogue: number for number, dialogue in enumerate(sorted(set(dialogue_of.values())))}
        self.dialogue_N = np.array([dialogues[dialogue_of[number]] for number in range(len(self.samples))])
        self.runs: dict[int, list[Answer]] = {}
        for answer in answers:
            self.runs.setdefault(answer["run"], []).append(answer)

    def of(self, metric: AnswerMetric, values_NK: np.ndarray) -> Estimate:
        """A metric of numbers of samples."""
        return _estimate(metric, values_NK, self.dialogue_N, task=self.task, resamples=self.resamples)

    def estimate(self, metric: AnswerMetric, *columns: Callable[[Answer], Any]) -> Estimate:
        """A metric of columns of answers. A sample's numbers are the means over its runs: draws are not of runs."""
        sums_NK, counts_N = np.zeros((len(self.samples), metric.width)), np.zeros(len(self.samples))
        for given in self.runs.values():
            places = [self.samples[answer["sample"]] for answer in given]
            sums_NK[places] += metric.statistics(*([column(answer) for answer in given] for column in columns)).numpy()
            counts_N[places] += 1
        return self.of(metric, sums_NK / counts_N[:, None])


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


def _metrics_of_texts(formulation: Formulation) -> dict[str, AnswerMetric]:
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
