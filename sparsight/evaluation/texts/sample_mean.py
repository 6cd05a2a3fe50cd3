"""The mean of what was scored elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric


class SampleMean(AnswerMetric):
    """Mean of given scores of samples, such as those that another program recorded; others do not count."""

    def __init__(self) -> None:
        super().__init__(width=2)

    def statistics(self, scores: Sequence[float | None]) -> Tensor:
        """Score, and whether there is one, of every sample, (N, 2)."""
        rows = [(0.0, 0.0) if score is None else (float(score), 1.0) for score in scores]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 2)."""
        return means[..., 0] / means[..., 1]
