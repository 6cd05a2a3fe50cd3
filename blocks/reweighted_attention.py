"""Attention whose weights are softplus of the logits over their sum, and are then sharpened.

Gao et al., "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models" (LSSAR),
arXiv 2501.13428: the exponential gives way to softplus, with a factor that grows with the log of the number of keys;
weights are sharpened by a power of what lies above a threshold. The published constants differ between versions: here
the factor is 1 at the site's own size, times a learned one per head that is fitted to the teacher.

Shape legend: B batch, h heads, N tokens, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, CoreMixer, Grid, Site, SiteSamples
from blocks.ops.fit import fitted

_ROWS = 256  # queries whose weights are held at a time


class ReweightedAttention(CoreMixer):
    """Attention to all keys without an exponential, at the cost of attention: for other numbers of tokens.

    Args:
        site: Where the mixer stands.
        power: Of the sharpening; 1 with a threshold of 0 is none.
        threshold: Weights below this share of an even one vanish; less than 1, so that a query always sees something.

    Raises:
        ValueError: A number is out of range.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, power: float = 3.0, threshold: float = 0.0) -> None:
        super().__init__(site)
        if not 1 <= power < math.inf or not 0 <= threshold < 1:
            raise ValueError(
                f"power and threshold of ReweightedAttention are {power!r} and {threshold!r}: give at least 1, and "
                "0 or more but less than 1"
            )
        self.power, self.threshold = power, threshold
        self.log_factor = nn.Parameter(torch.zeros(site.heads))

    def flops(self, grid: Grid) -> int:
        """Two products of N x N x (h*d): 4 N^2 h d."""
        return 4 * grid.tokens**2 * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors, some queries at a time."""
        return torch.cat([self._weights(rows, k, grid, scale) @ v for rows in q.split(_ROWS, 2)], 2)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """All weights at once, step by step in float64."""
        factor = self.log_factor.double().exp()[:, None, None] * math.log(grid.tokens) / math.log(self._trained)
        weights = (1 + (q @ k.mT * scale).double().mul(factor).exp()).log()
        weights = weights / weights.sum(-1, keepdim=True)
        weights = (grid.tokens * weights - self.threshold).clamp(min=0) ** self.power
        return (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit the factors to the core's outputs on real batches."""
        fitted(self, weights, samples)

    @property
    def _trained(self) -> int:
        return max(2, self.site.grid.tokens)

    def _weights(self, q: Tensor, k: Tensor, grid: Grid, scale: float) -> Tensor:
        """Weights of some queries (B, h, rows, N); each row sums to one."""
        tokens = q.new_full((), grid.tokens, dtype=torch.float32)  # as a number, each size would be a graph
        factor = self.log_factor.float().exp()[:, None, None] * tokens.log() / math.log(self._trained)
        weights = F.softplus((q @ k.mT).float() * (scale * factor))
        if self.threshold or self.power != 1:
            weights = F.relu(weights / weights.mean(-1, keepdim=True) - self.threshold) ** self.power
        return (weights / weights.sum(-1, keepdim=True)).to(k.dtype)
