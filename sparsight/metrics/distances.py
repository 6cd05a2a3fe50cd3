"""Distances between sets of images under a feature extractor."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from sparsight.metrics.images import to_uint8


class FrechetDistance:
    """Frechet distance (Heusel et al., arXiv 1706.08500) of sets of images to one reference set.

    Args:
        reference: Images in [0, 1], in batches (B, C, H, W); their features are computed once.
        extractor: Maps uint8 images to features, see :mod:`sparsight.metrics.features`.
    """

    def __init__(self, reference: Iterable[Tensor], extractor: nn.Module) -> None:
        self._metric = FrechetInceptionDistance(feature=extractor, reset_real_features=False)
        for images in reference:
            self._metric.update(to_uint8(images), real=True)

    def __call__(self, batches: Iterable[Tensor]) -> float:
        """Distance of a set of images in [0, 1], in batches, to the reference."""
        self._metric.reset()
        for images in batches:
            self._metric.update(to_uint8(images), real=False)
        return float(self._metric.compute())


def kernel_distance(
    real: Iterable[Tensor], fake: Iterable[Tensor], extractor: nn.Module, *, subset_size: int, subsets: int = 50
) -> tuple[float, float]:
    """Kernel distance (KID, Binkowski et al., arXiv 1801.01401), unbiased and so fit for small samples.

    Returns:
        Mean and standard deviation over random subsets.

    Raises:
        ValueError: A set holds fewer than ``subset_size`` images.
    """
    metric = KernelInceptionDistance(feature=extractor, subset_size=subset_size, subsets=subsets)
    for batches, is_real in ((real, True), (fake, False)):
        for images in batches:
            metric.update(to_uint8(images), real=is_real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the subsets are drawn from the global generator
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def image_distance(first: Tensor, second: Tensor) -> float:
    """Root mean square difference of paired images in [0, 1], (B, C, H, W): 0 is equal."""
    return float((first.float() - second.float()).square().mean().sqrt())
