"""Attention inside a disc around each query, the convolution-like attention of CLEAR.

Liu et al., "CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up", arXiv 2412.16112. Discs are cut
off at the borders. Its pooled keys are ``blocks.PooledAttention`` beside it in a ``blocks.Merge``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.base import AXES, Grid, Site
from blocks.local_attention import LocalAttention
from blocks.ops.local import LocalPlan, at_most, reach_axis, tiles_of


class DiscAttention(LocalAttention):
    """Softmax attention over tokens nearer than a radius: the squares of dy / r and dx / r add up to less than 1.

    Args:
        site: Where the mixer stands.
        radius: In tokens, or one for each of the last axes. A radius of 1 is the query alone; of 8, up to 193 tokens.

    Raises:
        ValueError: If a radius is not positive, or there are none or more than three.
    """

    def __init__(self, site: Site, *, radius: float | Sequence[float] = 8) -> None:
        super().__init__(site)
        radii = tuple(radius) if isinstance(radius, Sequence) else (radius,)
        if not 1 <= len(radii) <= len(AXES) or any(not 0 < each < math.inf for each in radii):
            raise ValueError(f"radius is one positive number or one for each of the last axes, got {radius!r}")
        self.radius = radii if isinstance(radius, Sequence) else radius

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """A radius longer than the diagonal."""
        return {"radius": sum(grid.sizes)}

    def flops(self, grid: Grid) -> int:
        """Two products of each query with a whole disc, cut to the grid: 4 * N * keys * h * d (masked keys not)."""
        radii = self._radii(len(grid.sizes))
        sizes = [min(size, 2 * _reach(r) + 1) for size, r in zip(grid.sizes, radii, strict=True)]
        apart = [range(-(size // 2), size - size // 2) for size in sizes]
        keys = sum(
            sum((x / r) ** 2 for x, r in zip(each, radii, strict=True)) < 1 for each in itertools.product(*apart)
        )
        return 4 * grid.tokens * keys * self.site.heads * self.site.head_dim

    def plan(self, grid: Grid, device: torch.device | None = None) -> LocalPlan:
        """Tiles of queries, each with the keys in the discs of its queries."""
        radii = self._radii(len(grid.sizes))
        tiles = tiles_of([2 * _reach(radius) + 1 for radius in radii])
        axes = [
            reach_axis(size, reach=_reach(radius), tile=tile, device=device)
            for size, radius, tile in zip(grid.sizes, radii, tiles, strict=True)
        ]
        return LocalPlan(grid, axes, also=self._inside)

    def block(self, grid: Grid) -> int:
        """Keys of a tile: a reach on either side of its queries."""
        radii = self._radii(len(grid.sizes))
        tiles = tiles_of([2 * _reach(radius) + 1 for radius in radii])
        counts = [tile + 2 * _reach(radius) for tile, radius in zip(tiles, radii, strict=True)]
        return math.prod([at_most(count, size) for count, size in zip(counts, grid.sizes, strict=True)])

    def mask(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) attends to: boolean (N, N), row-major tokens."""
        sides = [torch.arange(size, device=device) for size in grid.sizes]
        places = torch.stack([place.flatten() for place in torch.meshgrid(*sides, indexing="ij")])
        return self._inside(list(places[:, None] - places[..., None]))

    def _inside(self, apart: Sequence[Tensor]) -> Tensor:
        radii = self._radii(len(apart))
        # whole radii are compared in whole numbers, which float64 holds exactly
        whole = math.prod([radius**2 for radius in radii])
        total = torch.zeros((), dtype=torch.float64, device=apart[0].device)
        for x, radius in zip(apart, radii, strict=True):
            total = total + x.double() ** 2 * (whole / radius**2)
        return total < whole

    def _radii(self, count: int) -> tuple[float, ...]:
        """A radius for every axis; a query sees its own position alone on axes in front of those that are given."""
        given = self.radius if isinstance(self.radius, tuple) else (self.radius,) * count
        return ((1.0,) * count + given)[-count:]


def _reach(radius: float) -> int:
    """How many positions away a key can be."""
    return math.ceil(radius) - 1
