"""Metrics of questions answered by yes or no, yes being what is detected (POPE: Li et al., arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_pairs


class _Detection(AnswerMetric):
    """Counts of what was said and what is so, as means over samples."""

    def __init__(self) -> None:
        super().__init__(width=3)

    def statistics(self, predictions: Sequence[int | None], targets: Sequence[int]) -> Tensor:
        """Whether yes is right, was said, and was rightly said, 1 or 0 for every sample, (N, 3).

        Args:
            predictions: 0 for yes, 1 for no, ``None`` for neither.
            targets: 0 for yes, 1 for no.
        """
        check_pairs(predictions, targets)
        rows = [
            (right == 0, said == 0, right == 0 and said == 0) for said, right in zip(predictions, targets, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


class YesPrecision(_Detection):
    """Share of those answered by yes where yes is right, 0 to 1; 0 where nothing was answered by yes."""

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 3)."""
        return _ratio(means[..., 2], means[..., 1])


class YesRecall(_Detection):
    """Share of those where yes is right that were answered by yes, 0 to 1; 0 where yes is never right."""

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 3)."""
        return _ratio(means[..., 2], means[..., 0])


class YesF1(_Detection):
    """Harmonic mean of ``YesPrecision`` and ``YesRecall``, 0 to 1."""

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 3)."""
        return _ratio(2 * means[..., 2], means[..., 0] + means[..., 1])


class YesShare(_Detection):
    """Share answered by yes, 0 to 1: one that says yes to everything has a recall of 1."""

    higher_is_better = None

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 3)."""
        return means[..., 1]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))
