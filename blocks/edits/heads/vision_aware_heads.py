"""VHR: heads that depend on the image speak louder (He et al., arXiv 2412.13949).

Shape legend: B batch, h heads, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.edits.base import ComparedHeadEdit, layers_from
from blocks.tokens.base import FeatureReducer
from blocks.tokens.reducers.controls import WithoutImages


class VisionAwareHeads(ComparedHeadEdit):
    """Scales the half of a layer's heads that change most when the image is gone (VHR).

    A head's measure is how far its answer at the prompt's last token is from that without the image. Heads more than a
    standard deviation above the layer's mean do not count. Measured once for a prompt, in a pass of its own.

    Args:
        alpha: Factor of those above the median.
        first_layer: The first layer that is changed.
        last_layer: The last one; that of the decoder if not given.
    """

    def __init__(self, alpha: float = 2.0, first_layer: int = 0, last_layer: int | None = None) -> None:
        self.alpha, self.first_layer, self.last_layer = alpha, layers_from(first_layer), last_layer

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed to the last."""
        return self.first_layer <= layer <= (depth - 1 if self.last_layer is None else self.last_layer)

    def reducer(self) -> FeatureReducer:
        """No image."""
        return WithoutImages()

    def scales(self, heads: Tensor, others: Tensor) -> Tensor:
        """``alpha`` for those above the median, but for outliers."""
        apart = (heads - others).norm(dim=-1)
        usual = apart <= apart.mean(1, keepdim=True) + apart.std(1, keepdim=True)
        median = apart.masked_fill(~usual, float("nan")).nanmedian(1, keepdim=True).values
        return torch.where(usual & (apart > median), self.alpha, 1.0)
