"""Mixers that do what nobody would train with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import CoreMixer, FeatureMixer, Grid, Site


class Scaled(FeatureMixer):
    """Halves the hidden state; subclasses get it wrong in one way each."""

    def flops(self, grid: Grid) -> int:
        return grid.tokens

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC / 2


class WrongKernel(Scaled):
    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC / 2.1


class Blend(CoreMixer):
    """A learned share of softmax attention in each head beside each token's own value; half to begin with."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.share = nn.Parameter(torch.full((site.heads, 1, 1), 0.5))
        self.after = nn.Linear(site.head_dim, site.head_dim)

    def flops(self, grid: Grid) -> int:
        return 4 * grid.tokens**2 * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.after(self.share * attended + (1 - self.share) * v)
