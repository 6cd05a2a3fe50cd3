"""A feature extractor that can be followed by hand."""

from __future__ import annotations

from torch import Tensor, nn

from sparsight.evaluation.images import FeatureExtractor


class Quarters(FeatureExtractor):
    """Means of the four quarters of an image, in [0, 1], scaled by a weight."""

    def __init__(self, weight: float = 1.0) -> None:
        network = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(network.weight, weight)
        super().__init__(network, name="quarters", preprocessing="x / 255")

    def extract(self, images_BCHW: Tensor) -> Tensor:
        grey = images_BCHW.float().mean(1, keepdim=True) / 255
        return nn.functional.adaptive_avg_pool2d(self.network(grey), 2).flatten(1)
