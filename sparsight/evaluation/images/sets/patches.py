"""Frechet distance between patches of large images, whose detail whole images lose when they are resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.frechet import FrechetDistance
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.samples import Samples
from sparsight.evaluation.images.set_distance import Statistics
from sparsight.evaluation.images.statistics import Moments

_PRIME = 1_000_003  # seeds of two ids are apart, whatever the metric's seed is


class PatchFrechetDistance(FrechetDistance):
    """Frechet distance between square patches at the images' own size (patch FID, Chai et al., arXiv 2204.07156).

    ``patches`` patches of ``size`` pixels are cut from each image, at places that depend on ``seed`` and the image's id
    alone: those of a student and its teacher are the same. With ``InceptionFeatures`` and 299 px nothing is resized.
    Samples and reference images must be of one size: that decides what a patch shows.

    Args:
        extractor: Describes patches.
        reference: File of reference statistics: read if it is there, written once they are known if it is not. Its
            ``count`` is one of images.
        size: Side of a patch in pixels.
        patches: Patches of an image.
        seed: Decides their places.
        suffix: Ends the logged name.

    Raises:
        ValueError: A number is below 1, or the file was made from other images or patches, or with another extractor.

    Examples:
        >>> metric = PatchFrechetDistance(extractor, size=16, patches=2).with_reference(in_batches(real))
        >>> [*metric.of(in_batches(drawn))]
        ['patch_fd_efficientnet_lite0_16px']
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference | None = None,
        size: int = 299,
        patches: int = 10,
        seed: int = 0,
        suffix: str | None = None,
    ) -> None:
        if size < 1 or patches < 1:
            raise ValueError(f"size and patches must be 1 or more, got {size} and {patches}")
        self.size, self.patches, self.seed = size, patches, seed
        self.kind = f"moments of {patches} patches of {size} px, seed {seed}"  # before a file is read
        super().__init__(extractor, reference, suffix)

    @property
    def protocol(self) -> str:
        """Extractor, reference and patches."""
        return f"{super().protocol}, {self.patches} patches of {self.size} px an image, seed {self.seed}"

    def statistics(self) -> Metric:
        """Mean and covariance of patches."""
        return _MomentsOfPatches(self.extractor.num_features, self.patches)

    def views(self, samples: Samples) -> Sequence[Samples]:
        """One batch of patches after the other.

        Raises:
            ConfigurationError: Images are smaller than a patch.
        """
        height, width = samples.images.shape[-2:]
        if min(height, width) < self.size:
            raise ConfigurationError(
                f"patches of {self.size} px do not fit into images of {height}x{width}: lower size, or leave "
                f"{type(self).__name__} out"
            )
        places = [self._places(int(i), height=height, width=width) for i in samples.index]
        return [
            Samples(torch.stack([self._cut(*pair) for pair in zip(samples.images, spots, strict=True)]), samples.index)
            for spots in zip(*places, strict=True)
        ]

    def _places(self, index: int, *, height: int, width: int) -> list[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * _PRIME + index)
        rows, columns = (
            torch.randint(length - self.size + 1, (self.patches,), generator=generator) for length in (height, width)
        )
        return list(zip(rows.tolist(), columns.tolist(), strict=True))

    def _cut(self, image_CHW: Tensor, place: tuple[int, int]) -> Tensor:
        row, column = place
        return image_CHW[:, row : row + self.size, column : column + self.size]

    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """``patch_fid_<extractor>_<size>px`` for Inception, else ``patch_fd_...``."""
        return {f"patch_{self.prefix}_{self.extractor.name}_{self.size}px": self.between(drawn, reference)}


class _MomentsOfPatches(Moments):
    """Moments whose ``count`` is one of images.

    Args:
        num_features: Length of a feature vector.
        patches: Patches of an image.
    """

    def __init__(self, num_features: int, patches: int) -> None:
        super().__init__(num_features)
        self.patches = patches

    def compute(self) -> dict[str, Tensor]:
        """``count`` of images, ``mean`` (F,) and unbiased ``covariance`` (F, F) of patches."""
        moments = super().compute()
        return moments | {"count": moments["count"] // self.patches}
