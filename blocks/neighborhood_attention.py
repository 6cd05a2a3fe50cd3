"""Neighbourhood attention: every query attends to a window of its nearest tokens.

Hassani et al., "Neighborhood Attention Transformer", arXiv 2204.07143; dilation as in "Dilated Neighborhood Attention
Transformer", arXiv 2209.15001; strides, even windows and shapes per axis as in "Generalized Neighborhood Attention",
arXiv 2504.16922. At the border the window is shifted inwards, never padded, so that every query has equally many keys.
With a stride as long as a tile, windows slide by whole tiles (Zhang et al., "Fast Video Generation with Sliding Tile
Attention", arXiv 2502.04507).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.base import Grid, Site
from blocks.local_attention import LocalAttention, checked_sides, on_axes
from blocks.ops.local import LocalPlan, at_most, sliding_axis, tiles_of


class NeighborhoodAttention(LocalAttention):
    """Softmax attention over the window of ``kernel_size`` tokens a side around each query.

    Options are one number, or one for each of the last axes.

    Args:
        site: Where the mixer stands.
        kernel_size: Side of the window in tokens; even sides reach one token further up and left. A window larger than
            the grid is cut to the grid.
        dilation: Distance of neighbours along an axis: a query sees only tokens at multiples of it. More than the grid
            is long leaves a query alone.
        stride: So many neighbours along an axis share the window of the one in their middle.

    Raises:
        ValueError: If a number is below 1, there are more than three, or a stride is longer than the window.
    """

    def __init__(
        self,
        site: Site,
        *,
        kernel_size: int | Sequence[int] = 13,
        dilation: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
    ) -> None:
        super().__init__(site)
        self.kernel_size = on_axes(checked_sides("kernel_size", kernel_size), site.grid)
        self.dilation = checked_sides("dilation", dilation)
        self.stride = checked_sides("stride", stride)
        pairs = zip(self.kernel_size, on_axes(self.stride, site.grid), strict=True)
        if any(stride > side for side, stride in pairs):
            raise ValueError(
                f"stride of NeighborhoodAttention is {stride!r} for a kernel_size of {kernel_size!r}: queries would "
                "not see themselves, so give a stride of at most the window"
            )

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """A window that covers the grid."""
        return {"kernel_size": list(grid.sizes)}

    def flops(self, grid: Grid) -> int:
        """Two products of each query with its keys: 4 * N * keys * h * d (the masked-out keys are not counted)."""
        keys = math.prod(min(side, -(-size // dilation)) for size, side, dilation, _ in self._axes(grid))
        return 4 * grid.tokens * keys * self.site.heads * self.site.head_dim

    def plan(self, grid: Grid, device: torch.device | None = None) -> LocalPlan:
        """Tiles of queries, each with the keys that its queries see."""
        axes = self._axes(grid)
        tiles = tiles_of([side for _, side, _, _ in axes])
        plans = [
            sliding_axis(size, window=side, dilation=dilation, stride=stride, tile=tile, device=device)
            for (size, side, dilation, stride), tile in zip(axes, tiles, strict=True)
        ]
        return LocalPlan(grid, plans)

    def block(self, grid: Grid) -> int:
        """Keys of a tile: those of its first query, and more for each query behind it."""
        axes = self._axes(grid)
        pairs = zip(axes, tiles_of([side for _, side, _, _ in axes]), strict=True)
        more = [(side + -(-tile // stride) * stride - stride, size) for (size, side, _, stride), tile in pairs]
        return math.prod([at_most(count, size) for count, size in more])

    def mask(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) attends to: boolean (N, N), row-major tokens."""
        mask = torch.ones(1, 1, dtype=torch.bool, device=device)
        for axis in self._axes(grid):
            own = _axis_mask(*axis, device)
            mask = (mask[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)
        return mask

    def _axes(self, grid: Grid) -> list[tuple[int, int, int, int]]:
        """Length, window, dilation and stride of every axis."""
        windows, dilations, strides = (on_axes(each, grid) for each in (self.kernel_size, self.dilation, self.stride))
        dilations = tuple(min(d, size) if d > 1 else 1 for d, size in zip(dilations, grid.sizes, strict=True))
        return list(zip(grid.sizes, windows, dilations, strides, strict=True))


def _axis_mask(length: int, window: int, dilation: int, stride: int, device: torch.device | None) -> Tensor:
    """Boolean (length, length): positions within the window of each position along one axis."""
    position = torch.arange(length, device=device)
    remainder, inside = position % dilation, position // dilation
    count = (length - 1 - remainder) // dilation + 1
    leader = torch.minimum(inside // stride * stride + stride // 2, count - 1)
    side = count.clamp(max=window)
    start = torch.minimum((leader - window // 2).clamp(min=0), count - side)
    near = (inside >= start[:, None]) & (inside < (start + side)[:, None])
    return near & (remainder == remainder[:, None])
