"""LACING's image-free guidance (Zhao et al., arXiv 2411.14279).

Shape legend: V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import BranchDecoder, between, plausible
from blocks.tokens.base import FeatureReducer
from blocks.tokens.reducers.controls import WithoutImages


class ImageGuidance(BranchDecoder):
    """Moves logits away from what a pass without the image says (LACING's guidance).

    The paper trains a soft prompt that stands for the image in the second pass; here images are left out of it.

    Args:
        scale: l_u + scale (l_c - l_u), of logits with (c) and without (u) the image; 1 changes nothing.
        beta: Words less likely than this share of the likeliest are left out; 0 lets all pass.
    """

    def __init__(self, scale: float = 1.5, beta: float = 0.0) -> None:
        self.scale, self.beta = scale, between(beta, 0, 1, name="beta")

    def reducer(self) -> FeatureReducer:
        """No image."""
        return WithoutImages()

    def combine(self, logits: Tensor, second: Tensor) -> Tensor:
        """Guided logits."""
        return plausible(logits, second + self.scale * (logits - second), beta=self.beta)
