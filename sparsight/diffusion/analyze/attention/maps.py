"""Attention maps a few rows at a time, so that no whole one is ever held, and where their keys are.

Shape legend: B batch, h heads, N tokens of the image, n rows (queries) of all, c rows at a time, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blocks.base import Grid, Layout

CHUNK = 2**20
"""Most numbers of a map that are held at a time: rows are taken so many at once, and at least one."""


@dataclass(frozen=True)
class Rows:
    """Some rows of the attention of image tokens to each other.

    Attributes:
        index_c: Tokens of the grid that the queries are.
        weights: (B, h, c, N), each row a distribution over the image's tokens alone.
        entropy: (B, h, c), in nats, of those.
        text: (B, h, c), the share of the whole attention that falls on tokens of text; none where there are none.
    """

    index_c: Tensor
    weights: Tensor
    entropy: Tensor
    text: Tensor | None


class Maps:
    """The attention maps of a batch, made again whenever they are asked for.

    Args:
        q: Queries (B, h, tokens, d), in float32 or float64.
        k: Keys, of the same shape.
        layout: Where the image stands among them.
        scale: Factor of the logits.
        queries: Most rows that are looked at; fewer are drawn among the image's tokens, always the same.
    """

    def __init__(self, q: Tensor, k: Tensor, layout: Layout, scale: float, *, queries: int) -> None:
        self.grid, self.scale = layout.grid, scale
        tokens = layout.grid.tokens
        drawn_n = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:queries].sort().values
        self.index_n = drawn_n.to(q.device)
        self._q = layout.split(q)[1][:, :, self.index_n]
        before, self._k, after = layout.split(k)
        self._text = torch.cat([before, after], 2) if layout.others else None

    @property
    def leading(self) -> torch.Size:
        """(B, h)."""
        return self._q.shape[:2]

    @property
    def device(self) -> torch.device:
        """Where the maps are computed."""
        return self._q.device

    def zeros(self, *sizes: int) -> Tensor:
        """A tensor (B, h, ...) to add up in."""
        return self._q.new_zeros(*self.leading, *sizes)

    def __iter__(self) -> Iterator[Rows]:
        most = max(1, CHUNK // (self.leading.numel() * self.grid.tokens))
        for at in range(0, len(self.index_n), most):
            q = self._q[:, :, at : at + most]
            logits = (q @ self._k.mT).mul_(self.scale)
            total = logits.logsumexp(-1)
            weights = (logits - total[..., None]).exp_()
            entropy = total - logits.mul_(weights).sum(-1)
            text = None
            if self._text is not None:
                text = ((q @ self._text.mT * self.scale).logsumexp(-1) - total).sigmoid()
            yield Rows(self.index_n[at : at + most], weights, entropy, text)


def coordinates(grid: Grid, device: torch.device) -> Tensor:
    """Position of every token on each axis: (N, axes)."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid.sizes)).reshape(grid.tokens, -1)


def rings(grid: Grid, index_c: Tensor) -> Tensor:
    """Distance of every token from the given ones, on the axis on which it is largest: (c, N), whole numbers.

    A window of k x k tokens around a token holds the rings 0 to (k - 1) / 2.
    """
    apart = torch.zeros(len(index_c), grid.tokens, dtype=torch.int32, device=index_c.device)
    for place in coordinates(grid, index_c.device).int().unbind(-1):
        torch.maximum(apart, (place[index_c][:, None] - place).abs_(), out=apart)
    return apart.long()


def ring_count(grid: Grid) -> int:
    """How many different distances there are on a grid."""
    return max(grid.sizes)


def sums_by_ring(values: Tensor, ring_cN: Tensor, count: int) -> Tensor:
    """Sums of (B, h, c, N) over rows and keys, for every distance apart: (B, h, count)."""
    index = ring_cN.reshape(1, 1, -1).expand(*values.shape[:2], -1)
    return values.new_zeros(*values.shape[:2], count).scatter_add_(-1, index, values.flatten(-2))
