"""How accuracy changes along a dialogue.

Shape legend: N samples, T turns of the longest dialogue, K = 2 T numbers of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_pairs

ROUNDING = 1e-24
"""Accuracies whose variance is below this are equal."""


class TurnMetric(AnswerMetric):
    """A figure of the points (turn, mean accuracy of the questions of that turn), one point a turn.

    Every turn that was asked counts alike, however many dialogues reach it, as in ReForm-Eval. For a bootstrap over
    dialogues, add up the rows of each dialogue's questions: only ratios of the numbers matter.

    Args:
        turns: T; questions have turns 0 to T - 1.
    """

    higher_is_better = None

    def __init__(self, *, turns: int) -> None:
        super().__init__(width=2 * turns)
        self.turns = turns

    def statistics(self, correct: Sequence[float], turns: Sequence[int]) -> Tensor:
        """For every question, (N, 2 T): its correctness in its turn's column, and 1 in its turn's second column.

        Args:
            correct: Right or wrong, or a share of runs.
            turns: The question's place in its dialogue, from 0.

        Raises:
            ValueError: A turn is outside 0 to T - 1.
        """
        check_pairs(correct, turns)
        outside = [turn for turn in turns if not 0 <= turn < self.turns]
        if outside:
            raise ValueError(f"turn {outside[0]} is not one of 0 to {self.turns - 1}")
        right_N, turn_N = torch.tensor(correct, dtype=torch.float64), torch.tensor(turns, dtype=torch.int64)
        asked_NT = torch.nn.functional.one_hot(turn_N, self.turns).double()
        return torch.cat([asked_NT * right_N[:, None], asked_NT], dim=1)

    def combine(self, means: Tensor) -> Tensor:
        """The figure (...) of means (..., 2 T)."""
        right, asked = means.chunk(2, dim=-1)
        weight = (asked > 0).double() / (asked > 0).sum(-1, keepdim=True)
        accuracy = torch.where(asked > 0, right / asked, 0)
        turn = torch.arange(self.turns, dtype=means.dtype, device=means.device).expand_as(weight)
        turn, accuracy = (points - (weight * points).sum(-1, keepdim=True) for points in (turn, accuracy))
        covariance, of_turn, of_accuracy = (
            (weight * product).sum(-1) for product in (turn * accuracy, turn**2, accuracy**2)
        )
        return self.figure(covariance, of_turn, of_accuracy)

    @abstractmethod
    def figure(self, covariance: Tensor, of_turn: Tensor, of_accuracy: Tensor) -> Tensor:
        """The figure from the points' covariance and variances, each (...)."""


class TurnCorrelation(TurnMetric):
    """Pearson correlation of turn number and accuracy, -1 to 1; NaN for one turn, or if all are equally accurate."""

    def figure(self, covariance: Tensor, of_turn: Tensor, of_accuracy: Tensor) -> Tensor:
        """Covariance in units of both deviations."""
        correlation = (covariance / (of_turn * of_accuracy).sqrt()).clamp(-1, 1)  # sums are rounded
        return torch.where(of_accuracy > ROUNDING, correlation, torch.nan)


class TurnSlope(TurnMetric):
    """Slope of the least-squares line through accuracy over turn number: change a turn; NaN for one turn."""

    def figure(self, covariance: Tensor, of_turn: Tensor, of_accuracy: Tensor) -> Tensor:
        """Covariance over the turns' variance."""
        return covariance / of_turn
