"""Distances against their definitions; images and features at their edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsight.metrics.distances import FrechetDistance, image_distance, kernel_distance
from sparsight.metrics.features import EfficientNetLite0Features
from sparsight.metrics.images import to_uint8


class Pixels(nn.Module):
    """Means of the four quarters of an image: a feature extractor that can be followed by hand."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.double().mean(1, keepdim=True), 2).flatten(1) / 255


def test_uint8_clamps_and_rounds() -> None:
    values = torch.tensor([-0.01, 0.0, 0.001, 0.5, 0.999, 1.0, 1.01]).view(1, 1, 1, 7)
    assert to_uint8(values).flatten().tolist() == [0, 0, 0, 128, 255, 255, 255]
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        to_uint8(torch.zeros(1, 2, 2))


def test_frechet_distance_is_that_of_two_normal_distributions() -> None:
    first, second = torch.rand(400, 1, 8, 8), torch.rand(300, 1, 8, 8) ** 2
    extractor = Pixels()
    x, y = (extractor(to_uint8(images)) for images in (first, second))
    covariances = [torch.cov(features.T) for features in (x, y)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * cross
    distance = FrechetDistance(first.split(100), extractor)
    assert distance(second.split(70)) == pytest.approx(float(expected), rel=1e-3)
    assert distance([first]) == pytest.approx(0, abs=1e-6)
    assert distance([second]) == pytest.approx(float(expected), rel=1e-3)


def test_kernel_distance_is_the_unbiased_polynomial_mmd() -> None:
    first, second = torch.rand(60, 1, 8, 8), torch.rand(60, 1, 8, 8) ** 2
    extractor = Pixels()
    x, y = (extractor(to_uint8(images)) for images in (first, second))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    same = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    expected = same - 2 * kernel(x, y).mean()
    mean, deviation = kernel_distance([first], [second], extractor, subset_size=n, subsets=2)
    assert mean == pytest.approx(float(expected), rel=1e-3)
    assert deviation == pytest.approx(0, abs=1e-5)
    state = torch.get_rng_state()
    assert kernel_distance([first], [second], extractor, subset_size=20) == kernel_distance(
        [first], [second], extractor, subset_size=20
    )
    assert torch.equal(state, torch.get_rng_state()), "a metric must not move the global generator"


def test_image_distance() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert image_distance(images, images) == 0
    assert image_distance(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.25)) == pytest.approx(0.25)


def test_efficientnet_features_are_frozen_and_tell_images_apart() -> None:
    extractor = EfficientNetLite0Features(size=64).train()
    assert not extractor.training and not any(p.requires_grad for p in extractor.parameters())
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features = extractor(grey)
    assert features.shape == (2, extractor.num_features)
    torch.testing.assert_close(features, extractor(grey.expand(-1, 3, -1, -1)))
    assert (features[0] - features[1]).norm() > 0.1
    with pytest.raises(ValueError, match="to_uint8"):
        extractor(grey.float())
