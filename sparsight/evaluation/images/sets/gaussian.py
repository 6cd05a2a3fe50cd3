"""Kernel distance under a Gaussian kernel: CMMD with CLIP features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.images.clip import CLIPFeatures
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.set_distance import SetDistance, Statistics
from sparsight.evaluation.images.sets.neighbours import squared_distances
from sparsight.evaluation.images.statistics import Rows

_ROWS = 2048  # images whose kernel with all others is held at a time


class GaussianDistance(SetDistance):
    """Squared maximum mean discrepancy under a Gaussian kernel (Jayasumana et al., arXiv 2401.09603): CMMD.

    CMMD is defined on ``CLIPFeatures`` of ``openai/clip-vit-large-patch14-336`` with ``whole: true``, and logged as
    such for any CLIP features. Features are brought to unit length; the value is ``scale`` times the estimate with the
    smallest variance, which counts each image's kernel with itself, so it is not negative and grows a little for few
    samples.

    Args:
        extractor: Describes images.
        reference: File of reference features: read if it is there, written once they are known if it is not.
        sigma: Width of the kernel exp(-|x - y|^2 / (2 sigma^2)); 10 is the paper's.
        scale: Factor of the value; 1000 is the paper's.
        suffix: Ends the logged name.

    Raises:
        ValueError: A number is not above 0, or the file was made from other images or with another extractor.

    Examples:
        >>> metric = GaussianDistance(CLIPFeatures(clip)).with_reference(in_batches(real))
        >>> metric.of(in_batches(real))["cmmd_tiny-clip"] < metric.of(in_batches(drawn))["cmmd_tiny-clip"]
        True
    """

    kind = "features"

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference | None = None,
        sigma: float = 10.0,
        scale: float = 1000.0,
        suffix: str | None = None,
    ) -> None:
        if sigma <= 0 or scale <= 0:
            raise ValueError(f"sigma and scale must be above 0, got {sigma} and {scale}")
        super().__init__(extractor, reference, suffix)
        self.sigma, self.scale = sigma, scale

    @property
    def protocol(self) -> str:
        """Extractor, reference and kernel."""
        return f"{super().protocol}, features of unit length, Gaussian kernel of width {self.sigma:g}, x {self.scale:g}"

    def statistics(self) -> Metric:
        """All features."""
        return Rows(self.extractor.num_features)

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``cmmd_<extractor>`` for CLIP features, else ``mmd_<extractor>``.

        Raises:
            ConfigurationError: There are no images.
        """
        sets = {"samples": drawn["features"], "reference images": reference["features"]}
        for what, features_NF in sets.items():
            if not len(features_NF):
                raise ConfigurationError(f"there are no {what} to compare")
        fake_NF, real_MF = (F.normalize(features.double(), dim=1) for features in sets.values())
        same = self._mean_kernel(fake_NF, fake_NF) + self._mean_kernel(real_MF, real_MF)
        value = self.scale * (same - 2 * self._mean_kernel(fake_NF, real_MF))
        prefix = "cmmd" if isinstance(self.extractor, CLIPFeatures) else "mmd"
        return {f"{prefix}_{self.extractor.name}": value.clamp_min(0)}  # sums are rounded

    def _mean_kernel(self, x_NF: Tensor, y_MF: Tensor) -> Tensor:
        squared = (squared_distances(rows_BF, y_MF) for rows_BF in x_NF.split(_ROWS))
        sums = [torch.exp(-each / (2 * self.sigma**2)).sum() for each in squared]
        return torch.stack(sums).sum() / (len(x_NF) * len(y_MF))
