"""Normalised linear attention with non-linear query and key branches, after LinFusion.

Liu et al., "LinFusion: 1 GPU, 1 Minute, 16K Image", arXiv 2409.02097: softmax gives way to a positive feature map of
queries and keys, so that all tokens meet in one d x d matrix a head, and the cost grows with N rather than N^2. Weights
sum to one at any number of tokens. It owns its projections, since the branches act in front of them.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples

_EPS = 1e-4  # of the normaliser, as published


class LinearAttention(FeatureMixer):
    """Attention with weights phi(q_i) . phi(k_j), divided by their sum over j; phi = ELU + 1.

    q = W_q (x + f_q(x)), k = W_k (x + f_k(x)), v = W_v x, with branches f of Linear, LayerNorm, LeakyReLU, Linear.

    Args:
        site: Where the mixer stands.
        branch_dim: Width of the branches: channels (int) or a fraction of C (float); ``None`` or 0 leaves them out.
            Published: 1.0 for Stable Diffusion 1.5 and 2.1, 1/16 for XL.

    Raises:
        ValueError: If the width is negative.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, branch_dim: int | float | None = 1.0) -> None:
        super().__init__(site)
        self.branch_dim = _channels(branch_dim, site.channels)
        channels, inner = site.channels, site.heads * site.head_dim
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels)
        self.query_branch = _branch(channels, self.branch_dim)
        self.key_branch = _branch(channels, self.branch_dim)

    def flops(self, grid: Grid) -> int:
        """8 N C (h d) of the projections, 8 N C m of the branches, 4 N (h d) d + 2 N (h d) of the mixing."""
        tokens, channels, inner = grid.tokens, self.site.channels, self.site.heads * self.site.head_dim
        mixing = 4 * tokens * inner * self.site.head_dim + 2 * tokens * inner
        return 8 * tokens * channels * (inner + (self.branch_dim or 0)) + mixing

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        q_BhNd = self._heads(F.elu(self.query(_added(hidden_BNC, self.query_branch))) + 1)
        k_BhNd = self._heads(F.elu(self.key(_added(hidden_BNC, self.key_branch))) + 1)
        v_BhNd = self._heads(self.value(hidden_BNC))
        # for float16's range: means in place of sums over tokens (half of the 1 / N on either side) and over channels,
        # whose factor cancels, and division by the normaliser before the last product rather than after it
        root, per_channel = hidden_BNC.shape[1] ** -0.5, 1 / self.site.head_dim
        state_Bhdd = _capped((k_BhNd * root).mT @ (v_BhNd * (root * per_channel)))
        mass_BhN1 = q_BhNd @ (k_BhNd.mean(2) * per_channel)[..., None]
        mixed_BhNd = _capped(q_BhNd / (mass_BhN1 + _EPS * per_channel)) @ state_Bhdd
        return self.out(mixed_BhNd.transpose(1, 2).flatten(2))

    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Every weight of every pair of tokens, in the order of the paper's equations."""
        q_BhNd = self._heads(F.elu(self.query(_added(hidden_BNC, self.query_branch))) + 1)
        k_BhNd = self._heads(F.elu(self.key(_added(hidden_BNC, self.key_branch))) + 1)
        weights_BhNN = q_BhNd @ k_BhNd.mT / hidden_BNC.shape[1]
        weights_BhNN = weights_BhNN / (weights_BhNN.sum(-1, keepdim=True) + _EPS)
        return self.out((weights_BhNN @ self._heads(self.value(hidden_BNC))).transpose(1, 2).flatten(2))

    def _heads(self, x_BNC: Tensor) -> Tensor:
        """(B, h, N, d) view of what a projection returns."""
        return x_BNC.unflatten(-1, (self.site.heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Take the teacher's projections; branches begin at zero."""
        own = ((self.query, "query"), (self.key, "key"), (self.value, "value"), (self.out, "out"))
        for linear, name in own:
            bias = getattr(weights, f"{name}_bias")
            linear.weight.copy_(getattr(weights, name))
            linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)
        for branch in (self.query_branch, self.key_branch):
            if branch is not None:
                for parameter in branch[-1].parameters():
                    parameter.zero_()


def _channels(width: int | float | None, channels: int) -> int | None:
    """Width of the branches in channels; ``None`` where there are none."""
    if not width:
        return None
    if width < 0:
        raise ValueError(f"branch_dim is a number of channels, a fraction of them (float) or None; got {width!r}")
    return max(1, round(width * channels)) if isinstance(width, float) else width


def _branch(channels: int, width: int | None) -> nn.Sequential | None:
    if width is None:
        return None
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.LeakyReLU(), nn.Linear(width, channels))


def _added(hidden_BNC: Tensor, branch: nn.Module | None) -> Tensor:
    return hidden_BNC if branch is None else hidden_BNC + branch(hidden_BNC)


def _capped(x: Tensor) -> Tensor:
    """Replace float16's infinities by its largest number; other dtypes have range to spare."""
    return x.clamp(-65504, 65504) if x.dtype == torch.float16 else x
