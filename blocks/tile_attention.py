"""Attention inside tiles: the grid is cut into equal tiles, and every token attends to those of its own.

The windows of Liu et al., "Swin Transformer", arXiv 2103.14030, without their shift. Alone it joins nothing across
borders; merged with ``blocks.PooledAttention``, which sees all other tiles, it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import (
    checked_tile,
    from_tiles,
    has_rest,
    tile_count,
    tile_of_token,
    tile_sides,
    to_tiles,
    tokens_in_tiles,
    whole_tiles,
)


class TileAttention(SoftmaxMixer):
    """Softmax attention over the tokens of each query's tile.

    Args:
        site: Where the mixer stands.
        tile: Side of a tile in tokens, or one for each of the last axes. A tile larger than the grid is cut to it.

    Raises:
        ValueError: If a side is below 1, or there are more than three.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, tile: int | Sequence[int] = 8) -> None:
        super().__init__(site)
        self.tile = checked_tile(tile)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One tile that covers the grid."""
        return {"tile": list(grid.sizes)}

    def padded(self, grid: Grid) -> Grid:
        """Whole tiles."""
        return whole_tiles(tile_sides(self.tile, grid), grid)

    def flops(self, grid: Grid) -> int:
        """Two products of t x t x (h*d) in each of T whole tiles: 4 * T * t^2 * h * d."""
        sides = tile_sides(self.tile, grid)
        return 4 * tile_count(sides, grid) * math.prod(sides) ** 2 * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Attention of (B, h, N, d) tensors inside tiles."""
        sides = tile_sides(self.tile, grid)
        q, k, v = (to_tiles(x, sides, grid).flatten(0, 1) for x in (q, k, v))
        mask = self._padding(sides, grid, q.device)
        mask = None if mask is None else mask[None]  # fused kernels take masks of four axes alone
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return from_tiles(mixed.unflatten(0, (-1, self.site.heads)), sides, grid)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention inside tiles with its log-sum-exp."""
        sides = tile_sides(self.tile, grid)
        q, k, v = (to_tiles(x, sides, grid) for x in (q, k, v))
        parts = attend(q, k, v, scale, self._padding(sides, grid, q.device))
        output, lse = (from_tiles(part, sides, grid) for part in parts)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those of other tiles masked."""
        tile_N = tile_of_token(tile_sides(self.tile, grid), grid, q.device)
        return attend(q, k, v, scale, tile_N[:, None] == tile_N)

    @staticmethod
    def _padding(sides: tuple[int, ...], grid: Grid, device: torch.device) -> Tensor | None:
        """Which keys of a tile are tokens, (T, 1, t); none if all are."""
        return tokens_in_tiles(sides, grid, device)[:, None] if has_rest(sides, grid) else None
