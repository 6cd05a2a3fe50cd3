"""Fidelity and diversity by nearest neighbours: precision and recall, density and coverage."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.set_distance import SetDistance, Statistics
from sparsight.evaluation.images.statistics import Rows

_ROWS = 2048  # images whose distances to all others are held at a time


class NeighbourMetric(SetDistance):
    """What is told by balls around images that reach to their k-th nearest neighbour in their own set.

    Args:
        extractor: Describes images.
        reference: File of reference features: read if it is there, written once they are known if it is not.
        neighbours: k, of the image's own set and without itself.
        suffix: Ends the logged names.

    Raises:
        ValueError: k is below 1, or the file was made from other images or with another extractor.
    """

    kind = "features"
    higher_is_better = True

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference | None = None,
        neighbours: int = 3,
        suffix: str | None = None,
    ) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}; allowed: 1 or more")
        super().__init__(extractor, reference, suffix)
        self.neighbours = neighbours
        self.least_samples = neighbours + 1

    @property
    def protocol(self) -> str:
        """Extractor, reference and k."""
        return f"{super().protocol}, balls to the nearest neighbour of rank {self.neighbours}"

    def statistics(self) -> Metric:
        """All features."""
        return Rows(self.extractor.num_features)

    def checked(self, drawn: Statistics, reference: Statistics) -> tuple[Tensor, Tensor]:
        """Features of samples (N, F) and of reference images (M, F), float64.

        Raises:
            ConfigurationError: There are no more than k of one of them.
        """
        sets = {"samples": drawn["features"].double(), "reference images": reference["features"].double()}
        for what, features_NF in sets.items():
            if len(features_NF) <= self.neighbours:
                raise ConfigurationError(
                    f"{len(features_NF)} {what} have no neighbour of rank {self.neighbours}: draw more, or lower "
                    "neighbours"
                )
        return sets["samples"], sets["reference images"]


class PrecisionRecall(NeighbourMetric):
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991), each a share from 0 to 1.

    Precision is the share of samples in the ball of some reference image, recall the share of reference images in the
    ball of some sample; balls reach to the k-th neighbour, 3 unless told otherwise, and hold their surface. Both depend
    on the numbers of images: compare equal ones only.

    Examples:
        >>> metric = PrecisionRecall(extractor).with_reference(in_batches(real))
        >>> sorted(metric.of(in_batches(real)).items())  # the same images
        [('precision_efficientnet_lite0', 1.0), ('recall_efficientnet_lite0', 1.0)]
    """

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``precision_<extractor>`` and ``recall_<extractor>``.

        Raises:
            ConfigurationError: There are no more than k images.
        """
        fake_NF, real_MF = self.checked(drawn, reference)
        reach_M, reach_N = (squared_reach(x, neighbours=self.neighbours) for x in (real_MF, fake_NF))
        return {
            f"precision_{self.extractor.name}": _in_some_ball(fake_NF, real_MF, reach_M).mean(),
            f"recall_{self.extractor.name}": _in_some_ball(real_MF, fake_NF, reach_N).mean(),
        }


class DensityCoverage(NeighbourMetric):
    """Density and coverage (Naeem et al., arXiv 2002.09797), which outliers spoil less than precision and recall.

    Density is the mean number of reference images in whose ball a sample lies, over k: about 1 for equal distributions,
    and it may be larger. Coverage is the share, 0 to 1, of reference images whose ball holds a sample. Only reference
    images have balls, without their surface, to the k-th neighbour; 5 is the paper's k.

    Examples:
        >>> metric = DensityCoverage(extractor).with_reference(in_batches(real))
        >>> metric.of(in_batches(real))["coverage_efficientnet_lite0"]  # the same images
        1.0
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference | None = None,
        neighbours: int = 5,
        suffix: str | None = None,
    ) -> None:
        super().__init__(extractor, reference, neighbours, suffix)

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``density_<extractor>`` and ``coverage_<extractor>``.

        Raises:
            ConfigurationError: There are no more than k images.
        """
        fake_NF, real_MF = self.checked(drawn, reference)
        reach_M = squared_reach(real_MF, neighbours=self.neighbours)
        hits = torch.zeros((), dtype=torch.float64, device=fake_NF.device)
        covered_M = torch.zeros_like(reach_M, dtype=torch.bool)
        for rows_BF in fake_NF.split(_ROWS):
            inside_BM = squared_distances(rows_BF, real_MF) < reach_M
            hits += inside_BM.sum()
            covered_M |= inside_BM.any(0)
        return {
            f"density_{self.extractor.name}": hits / (self.neighbours * len(fake_NF)),
            f"coverage_{self.extractor.name}": covered_M.double().mean(),
        }


def squared_distances(x_NF: Tensor, y_MF: Tensor) -> Tensor:
    """|x - y|^2 for all pairs (N, M); float64 keeps what cancels in the sum of three terms."""
    products_NM = x_NF @ y_MF.T
    return (x_NF.square().sum(1)[:, None] + y_MF.square().sum(1) - 2 * products_NM).clamp_min(0)


def squared_reach(x_NF: Tensor, *, neighbours: int) -> Tensor:
    """Squared distance (N,) of each row to its neighbour of this rank, itself left out."""
    reach = []
    for first, rows_BF in enumerate(x_NF.split(_ROWS)):
        squared_BN = squared_distances(rows_BF, x_NF)
        own_B = torch.arange(len(rows_BF), device=x_NF.device)
        squared_BN[own_B, own_B + first * _ROWS] = torch.inf
        reach.append(squared_BN.kthvalue(neighbours, dim=1).values)
    return torch.cat(reach)


def _in_some_ball(points_NF: Tensor, centres_MF: Tensor, reach_M: Tensor) -> Tensor:
    inside = [(squared_distances(rows_BF, centres_MF) <= reach_M).any(1) for rows_BF in points_NF.split(_ROWS)]
    return torch.cat(inside).double()
