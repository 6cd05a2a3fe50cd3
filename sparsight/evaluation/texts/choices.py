"""Metrics of questions with options: how often right, how often in the asked form, how steady under perturbation.

All three as in ReForm-Eval (Li et al., arXiv 2310.02569).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_pairs, column


class ChoiceAccuracy(AnswerMetric):
    """Share of samples whose predicted option is the right one, 0 to 1."""

    def statistics(self, predictions: Sequence[int | None], targets: Sequence[int]) -> Tensor:
        """1 or 0 for every sample, (N, 1), from positions of options; ``None``: no option was recognised."""
        check_pairs(predictions, targets)
        return column([float(ours == right) for ours, right in zip(predictions, targets, strict=True)])


class FormatHitRate(AnswerMetric):
    """Share of samples whose output holds an option mark in the asked form, 0 to 1, right or wrong."""

    def statistics(self, predictions: Sequence[int | None], targets: Sequence[int]) -> Tensor:
        """1 or 0 for every sample, (N, 1).

        Args:
            predictions: Position of the option whose mark was found, ``None`` where there was no mark. An option that
                was recognised by its text is ``None`` here.
            targets: Right positions, not looked at; so that it can be updated beside ``ChoiceAccuracy``.
        """
        check_pairs(predictions, targets)
        return column([float(prediction is not None) for prediction in predictions])


class UnfinishedThoughts(AnswerMetric):
    """Share of samples whose output was cut off before the thought ended, so that there is no answer, 0 to 1."""

    higher_is_better = False

    def statistics(self, unfinished: Sequence[bool]) -> Tensor:
        """1 or 0 for every sample, (N, 1)."""
        return column([float(each) for each in unfinished])


class Instability(AnswerMetric):
    """Mean over samples of the entropy of the answers in N perturbed runs: 0, always the same, to ln N, never twice.

    H = - sum over answers a of p_a ln p_a, with p_a the share of a sample's runs that answered a.
    """

    higher_is_better = False

    def statistics(self, predictions: Sequence[Sequence[str]]) -> Tensor:
        """Entropy of every sample in nats, (N, 1).

        Args:
            predictions: A sample's answers in all its runs: the option's text, since positions are shuffled; the raw
                output where the format was missed, so that each malformed output is an answer of its own.

        Raises:
            ValueError: A sample has no runs, or is one string.
        """
        for number, answers in enumerate(predictions):
            if isinstance(answers, str) or not answers:
                raise ValueError(f"sample {number} must be a list of answers, one for each run; got {answers!r}")
        return column([_entropy(answers) for answers in predictions])


def _entropy(answers: Sequence[str]) -> float:
    shares = [count / len(answers) for count in Counter(answers).values()]
    return sum(share * math.log(1 / share) for share in shares)
