"""Kernel distance between features of samples and of reference images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.kid import poly_mmd

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.set_distance import SetDistance, Statistics
from sparsight.evaluation.images.statistics import Rows


class KernelDistance(SetDistance):
    """Kernel distance (KID, Binkowski et al., arXiv 1801.01401): unbiased and so fit for small samples.

    Mean and deviation, over random subsets, of the squared maximum mean discrepancy under (x y / F + 1)^3, in float64;
    it may be negative. The subsets depend on ``seed`` and the numbers of images alone, and the global generator is not
    touched.

    Args:
        extractor: Describes images.
        reference: File of reference features: read if it is there, written once they are known if it is not.
        subset_size: Images of a subset; 1000 is the field's.
        subsets: Number of subsets; 100 is the field's.
        seed: Decides the subsets.
        suffix: Ends the logged names.

    Raises:
        ValueError: The numbers of subsets or of their images are too small, or the file was made from other images or
            with another extractor.

    Examples:
        >>> metric = KernelDistance(extractor, subset_size=8, subsets=3).with_reference(in_batches(real))
        >>> [*metric.of(in_batches(drawn))]
        ['kid_efficientnet_lite0', 'kid_efficientnet_lite0_std']
    """

    kind = "features"

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference | None = None,
        subset_size: int = 1000,
        subsets: int = 100,
        seed: int = 0,
        suffix: str | None = None,
    ) -> None:
        if subset_size < 2 or subsets < 1:
            raise ValueError(f"subset_size must be 2 or more and subsets 1 or more, got {subset_size} and {subsets}")
        super().__init__(extractor, reference, suffix)
        self.subset_size, self.subsets, self.seed = subset_size, subsets, seed
        self.least_samples = subset_size

    @property
    def protocol(self) -> str:
        """Extractor, reference and subsets."""
        return f"{super().protocol}, {self.subsets} subsets of {self.subset_size}"

    def statistics(self) -> Metric:
        """All features."""
        return Rows(self.extractor.num_features)

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``kid_<extractor>`` and, with ``_std`` at the end, its deviation over subsets.

        Raises:
            ConfigurationError: There are fewer images than a subset has.
        """
        sets = {"samples": drawn["features"].double(), "reference images": reference["features"].double()}
        for what, features_NF in sets.items():
            if len(features_NF) < self.subset_size:
                raise ConfigurationError(
                    f"{len(features_NF)} {what} are fewer than subset_size={self.subset_size}: lower it"
                )
        generator = torch.Generator().manual_seed(self.seed)
        values = []
        for _ in range(self.subsets):
            chosen = [x[torch.randperm(len(x), generator=generator)[: self.subset_size]] for x in sets.values()]
            values.append(poly_mmd(chosen[1], chosen[0]))
        distances = torch.stack(values)
        name = f"kid_{self.extractor.name}"
        return {name: distances.mean(), f"{name}_std": distances.std(correction=0)}
