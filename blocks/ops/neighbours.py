"""Mixing a token with the mean of those around it, near or far, by weights that each token chooses.

Guo et al., "Robustifying Token Attention for Vision Transformers", arXiv 2303.11126 (token-aware average pooling). The
weights are a learned map of a head's keys, where theirs come from two convolutions of the hidden state.

Shape legend: B batch, h heads, N tokens, d channels of a head, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import Grid


class NeighbourPooling(nn.Module):
    """Tokens, and the means of three neighbours along every axis at several distances, by weights that sum to one.

    A learned strength per head, zero to begin with, is how much of that takes the token's place.

    Args:
        heads: Number of heads h.
        head_dim: Channels d of each.
        dilations: Distance of the neighbours at each scale.
    """

    def __init__(self, *, heads: int, head_dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.strength = nn.Parameter(torch.zeros(heads))
        self.weight = nn.Parameter(torch.zeros(heads, head_dim, 1 + len(self.dilations)))

    def forward(self, x_BhNd: Tensor, by_BhNd: Tensor, grid: Grid) -> Tensor:
        """Mix tokens by what others, or they themselves, say of their scales."""
        shares_BhNS = (by_BhNd @ self.weight.to(by_BhNd.dtype)).float().softmax(-1).to(x_BhNd.dtype)
        pooled = shares_BhNS[..., :1] * x_BhNd
        for scale, dilation in enumerate(self.dilations):
            mean = neighbour_means(x_BhNd, dilation, grid)
            pooled = pooled + shares_BhNS[..., scale + 1 : scale + 2] * mean
        return x_BhNd + self.strength[:, None, None].to(x_BhNd.dtype) * (pooled - x_BhNd)


def neighbour_means(x_BhNd: Tensor, dilation: int, grid: Grid) -> Tensor:
    """Mean of each token and those so far from it along every axis; what is beyond the grid counts for nothing."""
    image = x_BhNd.unflatten(2, grid.sizes)
    for axis, size in enumerate(grid.sizes):
        counts = _sums(torch.ones(size, 1, dtype=x_BhNd.dtype, device=x_BhNd.device), dilation)
        image = (_sums(image.movedim(2 + axis, -2), dilation) / counts).movedim(-2, 2 + axis)
    return image.flatten(2, 1 + len(grid.sizes))


def _sums(x_Ld: Tensor, dilation: int) -> Tensor:
    size = x_Ld.shape[-2]
    padded = F.pad(x_Ld, (0, 0, dilation, dilation))
    first, second, third = (padded.narrow(-2, step * dilation, size) for step in range(3))
    return first + second + third
