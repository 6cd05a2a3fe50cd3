"""Plain softmax attention, the exact twin of the teacher: the yardstick for every other mixer.

Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend


class SoftmaxAttention(SoftmaxMixer):
    """Full softmax attention over all tokens of the grid; equal to the teacher up to rounding."""

    served_axes = (1, 2, 3)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Every setting is exact, since there is none to choose."""
        return {}

    def flops(self, grid: Grid) -> int:
        """Two products of N x N x (h*d): 4 * N^2 * h * d."""
        return 4 * grid.tokens**2 * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Softmax attention of (B, h, N, d) tensors."""
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Full softmax attention with its log-sum-exp; memory grows with N^2."""
        return attend(q, k, v, scale)
