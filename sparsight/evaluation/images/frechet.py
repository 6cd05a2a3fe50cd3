"""Frechet distance between features of samples and of reference images."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from sparsight.evaluation.images.features import InceptionFeatures
from sparsight.evaluation.images.set_distance import SetDistance, Statistics
from sparsight.evaluation.images.statistics import Moments


class FrechetDistance(SetDistance):
    """Frechet distance (Heusel et al., arXiv 1706.08500); with Inception features it is the FID, and logged as such.

    It is biased towards larger values for few samples, so compare equal numbers only. Below the number of features it
    rests on singular covariances, and a warning says so. With DINOv2 features it is what papers call FDD or FD-DINOv2.

    Examples:
        >>> metric = FrechetDistance(extractor).with_reference(in_batches(real))
        >>> [*metric.of(in_batches(drawn))]
        ['fd_efficientnet_lite0']
    """

    kind = "moments"
    patches = 1
    """Parts of an image that are described apart."""

    def statistics(self) -> Metric:
        """Mean and covariance."""
        return Moments(self.extractor.num_features)

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``fid_<extractor>`` for Inception, else ``fd_<extractor>``."""
        return {f"{self.prefix}_{self.extractor.name}": self.between(drawn, reference)}

    @property
    def prefix(self) -> str:
        """What the distance is called with these features."""
        return "fid" if isinstance(self.extractor, InceptionFeatures) else "fd"

    def between(self, drawn: Statistics, reference: Statistics) -> Tensor:
        """The distance; warns of singular covariances."""
        for what, statistics in (("samples", drawn), ("reference images", reference)):
            if statistics["count"] * self.patches <= self.extractor.num_features:
                rank_zero_warn(
                    f"Frechet distance: {int(statistics['count'])} {what} do not span the "
                    f"{self.extractor.num_features} features of {self.extractor.name}; use more, or the kernel distance"
                )
        return frechet_distance(drawn["mean"], drawn["covariance"], reference["mean"], reference["covariance"])


def frechet_distance(
    mean_F: Tensor, covariance_FF: Tensor, other_mean_F: Tensor, other_covariance_FF: Tensor
) -> Tensor:
    """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of two normal distributions.

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), whose matrix is symmetric: its eigenvalues are real and
    found sooner than those of A B.
    """
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    root_FF = vectors_FF * values_F.clamp_min(0).sqrt() @ vectors_FF.T
    cross = torch.linalg.eigvalsh(root_FF @ other_covariance_FF @ root_FF).clamp_min(0).sqrt().sum()
    traces = covariance_FF.trace() + other_covariance_FF.trace()
    return ((mean_F - other_mean_F).square().sum() + traces - 2 * cross).clamp_min(0)  # sums are rounded
