"""Attention over pooled keys: the grid is cut into tiles, and each stands for its tokens by its mean key and value.

A logit gets the log of the number of tokens behind it, so that a mean key has the mass of as many equal tokens. Wang et
al., "Pyramid Vision Transformer", arXiv 2102.12122, attend to reduced keys, with a learned reduction and no such term.

Shape legend: B batch, h heads, N tokens, T tiles, t tokens of a tile, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import checked_tile, tile_count, tile_of_token, tile_sides, to_tiles, tokens_in_tiles


class PooledAttention(SoftmaxMixer):
    """Softmax attention over the mean key and value of each tile.

    Args:
        site: Where the mixer stands.
        tile: Side of a tile in tokens, or one for each of the last axes. A tile larger than the grid is cut to it.
        without_own: Whether a query does not see the tile that it lies in, as beside :class:`blocks.TileAttention` of
            the same tiles in a :class:`blocks.Merge`. Where there is one tile alone it then gives zero.

    Raises:
        ValueError: If a side is below 1, or there are more than three.
    """

    def __init__(self, site: Site, *, tile: int | Sequence[int] = 8, without_own: bool = False) -> None:
        super().__init__(site)
        self.tile = checked_tile(tile)
        self.without_own = without_own

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Tiles of one token."""
        return {"tile": 1, "without_own": False}

    def flops(self, grid: Grid) -> int:
        """Two products of N x T x (h*d): 4 * N * T * h * d (the means are not counted)."""
        tiles = tile_count(tile_sides(self.tile, grid), grid)
        return 4 * grid.tokens * tiles * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Attention of (B, h, N, d) tensors over pooled keys."""
        return self.partial(q, k, v, grid, scale)[0]

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over pooled keys with its log-sum-exp; memory grows with N * T."""
        sides = tile_sides(self.tile, grid)
        counts_T = tokens_in_tiles(sides, grid, q.device).sum(1)
        k_BhTd, v_BhTd = ((to_tiles(x, sides, grid).float().sum(3) / counts_T[:, None]).to(x.dtype) for x in (k, v))
        bias = counts_T.float().log()[None]
        if self.without_own:
            own_NT = tile_of_token(sides, grid, q.device)[:, None] == torch.arange(len(counts_T), device=q.device)
            bias = bias.masked_fill(own_NT, -math.inf)
        return attend(q, k_BhTd, v_BhTd, scale, bias)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens, each with the mean key and value of its tile in place of its own."""
        tile_N = tile_of_token(tile_sides(self.tile, grid), grid, q.device)
        same_NN = tile_N[:, None] == tile_N
        averaging_NN = same_NN / same_NN.sum(1, keepdim=True).to(k.dtype)
        mask = ~same_NN if self.without_own else None
        return attend(q, averaging_NN @ k, averaging_NN @ v, scale, mask)
