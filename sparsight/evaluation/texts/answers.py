"""What metrics of answers have in common: numbers for every sample, whose mean over samples gives the score.

Shape legend: N samples, K numbers of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class AnswerMetric(Metric, ABC):
    """A torchmetrics metric whose score is a function of a mean over samples.

    That is what a bootstrap needs: ``combine(statistics(...).mean(0))`` is the score of all samples, and
    ``combine`` takes the means of thousands of resamples at once.

    Args:
        width: K, how many numbers describe a sample.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = True
    kept: list[Tensor]

    def __init__(self, *, width: int = 1) -> None:
        super().__init__()
        self.width = width
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.reset()

    @abstractmethod
    def statistics(self, *answers: Any) -> Tensor:
        """Numbers of these samples, (N, K), float64, on the CPU; nothing is remembered.

        Raises:
            ValueError: The arguments do not fit together.
        """

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics`` over samples, (..., K)."""
        return means[..., 0]

    def reset(self) -> None:
        """Forget all samples; a process without samples still knows the shape that the others gather."""
        super().reset()
        self.kept.append(self._nothing().to(self.device))

    def update(self, *answers: Any) -> None:
        """Add samples; arguments are those of ``statistics``."""
        self.kept.append(self._keep(*answers).to(self.device))

    def compute(self) -> Tensor:
        """The score of all samples of all processes, a scalar.

        Raises:
            ValueError: There are none.
        """
        values_NK = self._per_sample(dim_zero_cat(self.kept))
        if not len(values_NK):
            raise ValueError(f"{type(self).__name__} has no samples to score")
        return self.combine(values_NK.mean(0))

    def _nothing(self) -> Tensor:
        return torch.empty(0, self.width, dtype=torch.float64)

    def _keep(self, *answers: Any) -> Tensor:
        return self.statistics(*answers)

    def _per_sample(self, kept: Tensor) -> Tensor:
        return kept


def column(values: Sequence[float]) -> Tensor:
    """One number for every sample as statistics, (N, 1)."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def check_pairs(predictions: Sized, targets: Sized) -> None:
    """See that there is one target for every prediction.

    Raises:
        ValueError: There is not.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions, but {len(targets)} targets: give one for each sample")


def check_references(predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> None:
    """See that every prediction has a list of accepted texts.

    Raises:
        ValueError: It has not; a lone string would be read letter by letter.
    """
    check_pairs(predictions, targets)
    for number, accepted in enumerate(targets):
        if isinstance(accepted, str) or not accepted or not all(text.strip() for text in accepted):
            raise ValueError(f"target {number} must be a list of accepted texts, none empty; got {accepted!r}")
