"""Attention for video that looks less far around the farther away a frame is.

Li et al., "Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation", arXiv
2506.19852: within an image the reach is halved whenever the distance between frames doubles. There, tiles of keys are
masked where it has become shorter than one; here a token of the same place is seen in every frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.base import Grid, Site
from blocks.local_attention import LocalAttention
from blocks.ops.local import LocalPlan, at_most, reach_axis, tiles_of


class RadialAttention(LocalAttention):
    """Softmax attention over tokens within a reach that halves with every doubling of the distance between frames.

    Of an image alone it sees a square around each query, cut off at the borders.

    Args:
        site: Where the mixer stands.
        reach: Rows and columns on either side, of a query's own frame and the next ones.

    Raises:
        ValueError: It is below 0.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, reach: int = 8) -> None:
        super().__init__(site)
        if reach < 0:
            raise ValueError(f"reach of RadialAttention is {reach!r}: give 0 or more tokens")
        self.reach = reach

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """A reach that is longer than the grid even from the last frame to the first one."""
        return {"reach": sum(grid.sizes) * 2 ** max(1, grid.sizes[0]).bit_length()}

    def flops(self, grid: Grid) -> int:
        """Two products of each query of a middle frame with its keys: 4 * N * keys * h * d (masked keys are not)."""
        frames = grid.sizes[0] if len(grid.sizes) > 2 else 1
        keys = 0
        for apart in range(-(frames // 2), frames - frames // 2):
            side = 2 * (self.reach >> _halvings(abs(apart))) + 1
            keys += math.prod(min(side, size) for size in grid.sizes[-2:])
        return 4 * grid.tokens * keys * self.site.heads * self.site.head_dim

    def plan(self, grid: Grid, device: torch.device | None = None) -> LocalPlan:
        """Tiles of queries, each with all frames of the places that its queries see in their own."""
        pairs = zip(grid.sizes, self._reaches(grid), self._tiles(grid), strict=True)
        axes = [reach_axis(size, reach=reach, tile=tile, device=device) for size, reach, tile in pairs]
        return LocalPlan(grid, axes, also=self._inside)

    def block(self, grid: Grid) -> int:
        """Keys of a tile."""
        pairs = zip(grid.sizes, self._reaches(grid), self._tiles(grid), strict=True)
        return math.prod([at_most(tile + 2 * reach, size) for size, reach, tile in pairs])

    def mask(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) attends to: boolean (N, N), row-major tokens."""
        sides = [torch.arange(size, device=device) for size in grid.sizes]
        places = torch.stack([place.flatten() for place in torch.meshgrid(*sides, indexing="ij")])
        return self._inside(list(places[:, None] - places[..., None]))

    def _reaches(self, grid: Grid) -> tuple[int, ...]:
        frames = (grid.sizes[0] - 1,) if len(grid.sizes) > 2 else ()
        return (*frames, *(at_most(self.reach, size) for size in grid.sizes[-2:]))

    def _tiles(self, grid: Grid) -> tuple[int, ...]:
        inside = tiles_of([2 * self.reach + 1 for _ in grid.sizes[-2:]])
        return (1, *inside) if len(grid.sizes) > 2 else inside

    def _inside(self, apart: Sequence[Tensor]) -> Tensor:
        frames, inside = [each.abs() for each in apart[:-2]], [each.abs() for each in apart[-2:]]
        reach = torch.full_like(inside[0], self.reach)
        for between in frames:
            far = 2 * torch.ones_like(between)
            reach = reach.expand(torch.broadcast_shapes(reach.shape, between.shape))
            for _ in range(self.reach.bit_length()):  # halved for every power of two up to the distance
                reach = torch.where(between >= far, reach // 2, reach)
                far = far * 2
        seen = inside[0] <= reach
        return seen & (inside[1] <= reach) if len(inside) > 1 else seen


def _halvings(apart: int) -> int:
    """How often the reach is halved at a distance."""
    return max(apart, 1).bit_length() - 1
