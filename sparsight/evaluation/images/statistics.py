"""What is kept of a set of images: the moments of their features, or the features themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from sparsight.common.errors import ConfigurationError


class Moments(Metric):
    """Count, mean and covariance of features, from sums in float64: equal for any split into batches and processes.

    Args:
        num_features: Length of a feature vector.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(num_features, num_features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features_BF: Tensor, index_B: Tensor) -> None:
        """Add features; ids do not matter."""
        features_BF = features_BF.double()
        self.count += len(features_BF)
        self.total += features_BF.sum(0)
        self.outer += features_BF.T @ features_BF

    def compute(self) -> dict[str, Tensor]:
        """``count``, ``mean`` (F,) and unbiased ``covariance`` (F, F).

        Raises:
            ConfigurationError: There are fewer than 2 images.
        """
        if self.count < 2:
            raise ConfigurationError(f"a covariance needs 2 images or more, got {int(self.count)}")
        mean_F = self.total / self.count
        covariance_FF = (self.outer - self.count * torch.outer(mean_F, mean_F)) / (self.count - 1)
        return {"count": self.count, "mean": mean_F, "covariance": covariance_FF}


class Rows(Metric):
    """All features, in the order of the images' ids: equal for any split into batches and processes.

    Args:
        num_features: Length of a feature vector.
    """

    full_state_update = False
    features: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows; a process without images still knows the shape that the others gather."""
        super().reset()
        self.features.append(torch.empty(0, self.num_features, device=self.device))
        self.index.append(torch.empty(0, dtype=torch.int64, device=self.device))

    def update(self, features_BF: Tensor, index_B: Tensor) -> None:
        """Add features of images with these ids."""
        self.features.append(features_BF)
        self.index.append(index_B.to(features_BF.device))

    def compute(self) -> dict[str, Tensor]:
        """``count`` and ``features`` (N, F)."""
        features_NF, index_N = (dim_zero_cat(rows) for rows in (self.features, self.index))
        return {"count": torch.tensor(len(index_N)), "features": features_NF[index_N.argsort(stable=True)]}
