"""Attention over pooled keys: the grid is cut into tiles, and each stands for its tokens by its mean key and value.

A logit gets the log of the number of tokens behind it, so that a mean key has the mass of as many equal tokens. Wang et
al., "Pyramid Vision Transformer", arXiv 2102.12122, attend to reduced keys, with a learned reduction and no such term;
"PVT v2", arXiv 2106.13797, to a fixed number of them; Pan et al., "Fast Vision Transformers with HiLo Attention", arXiv
2205.13213, for some of the heads; Chen et al., "PixArt-Sigma", arXiv 2403.04692, to keys and values compressed by a
depthwise convolution; Liu et al., "CLEAR", arXiv 2412.16112, beside a disc; Ren et al., "Combiner", arXiv 2107.05768,
to the largest key of each tile, with the value that the largest query expects there.

Shape legend: B batch, h heads, N tokens, T tiles, t tokens of a tile, d channels of a head, S and s sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blocks.base import Grid, Site, SoftmaxMixer, TokenMixer
from blocks.local_attention import checked_local, inside_counts, on_axes
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import (
    checked_tile,
    from_tiles,
    tile_count,
    tile_of_token,
    tile_sides,
    to_tiles,
    tokens_in_tiles,
    whole_tiles,
)
from blocks.parts import plain_part

_POOLINGS = ("mean", "positions", "channels", "expected")


class PooledAttention(SoftmaxMixer):
    """Softmax attention over the mean key and value of each tile.

    Args:
        site: Where the mixer stands.
        tile: Side of a tile in tokens, or one for each of the last axes. A tile larger than the grid is cut to it.
        cells: Cut every axis into so many tiles instead, at any size, as PVT v2 does; ``tile`` then counts for nothing.
        without_own: Whether a query does not see the tile that it lies in, as beside ``blocks.TileAttention`` of
            the same tiles in a ``blocks.Merge``. Where there is one tile alone it then gives zero.
        without: A local mixer, whose keys a query does not see here: a tile weighs as many tokens as are left of it.
            Beside that mixer in a ``blocks.Merge``.
        within: Side of a larger tile, a multiple of ``tile``: a query sees tiles of its own larger tile alone. A level
            of a pyramid, beside the next one with the larger tile and ``without_own``.
        pooling: ``mean``, or a weighted one: ``positions`` learns a weight for each position in a tile (CLEAR),
            ``channels`` one for each position and channel (PixArt-Sigma). All weights are 1 to begin with.
            ``expected``, as in Combiner: keys are the largest of each channel, and values those that queries of the
            same kind get by attention inside the tile.
        counted: Whether a tile weighs as many tokens as it has; published methods leave that out.

    Raises:
        ValueError: If a side is below 1, there are more than three, or options exclude each other.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        tile: int | Sequence[int] = 8,
        cells: int | None = None,
        without_own: bool = False,
        without: Callable[[Site], TokenMixer] | None = None,
        within: int | Sequence[int] | None = None,
        pooling: Literal["mean", "positions", "channels", "expected"] = "mean",
        counted: bool = True,
    ) -> None:
        super().__init__(site)
        self.tile = checked_tile(tile)
        self.cells, self.without_own, self.counted = cells, without_own, counted
        if cells is not None and cells < 1:
            raise ValueError(f"cells of PooledAttention is {cells!r}: give 1 or more for each axis, or none")
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling of PooledAttention is {pooling!r}: give one of {', '.join(_POOLINGS)}")
        self.pooling = pooling
        sides = on_axes(self.tile, site.grid)
        shapes = {"positions": (1, *sides, 1), "channels": (site.heads, *sides, site.head_dim)}
        if pooling in shapes and cells is not None:
            raise ValueError("pooling of PooledAttention learns weights of a tile, and cells make tiles of any size")
        self.within = None if within is None else checked_tile(within)
        if self.within is not None:
            larger = on_axes(self.within, site.grid)
            if cells is not None or without is not None:
                raise ValueError(
                    "within of PooledAttention goes with tile and without_own: leave cells and without out"
                )
            if any(wide % side for wide, side in zip(larger, sides, strict=True)):
                raise ValueError(f"within of PooledAttention is {within!r}, no multiple of its tile {tile!r}")
        self.local: Any = None if without is None else checked_local(without, site, "without of PooledAttention")
        self.without: Any = None if self.local is None else plain_part(self.local)
        self.left_out = self.without
        if self.local is not None and without_own:
            raise ValueError("without of PooledAttention says what a query does not see: leave without_own out")
        self.weight = nn.Parameter(torch.ones(shapes[pooling])) if pooling in shapes else None

    @property
    def has_product_logits(self) -> bool:
        """Keys of ``expected`` are not pooled as values are."""
        return self.pooling != "expected"

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Tiles of one token."""
        return {"tile": 1, "without_own": False}

    def padded(self, grid: Grid) -> Grid:
        """Whole larger tiles, where there are any."""
        return grid if self.within is None else whole_tiles(on_axes(self.within, grid), grid)

    def flops(self, grid: Grid) -> int:
        """Two products of N x T x (h*d): 4 * N * T * h * d (means are not counted); of T within a larger tile.

        Expected values are two products of T x t x (h*d) more.
        """
        tiles, tokens = tile_count(self._sides(grid), grid), grid.tokens
        expected = 4 * tiles * math.prod(self._sides(grid)) if self.pooling == "expected" else 0
        if self.within is not None:
            tokens = self.padded(grid).tokens
            tiles = math.prod(on_axes(self.within, grid)) // math.prod(self._sides(grid))
        return (4 * tokens * tiles + expected) * self.site.heads * self.site.head_dim

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over pooled keys with its log-sum-exp; memory grows with N * T."""
        sides = self._sides(grid)
        counts_T = tokens_in_tiles(sides, grid, q.device).sum(1)
        if self.pooling == "expected":
            k_BhTd, v_BhTd = _expected(q, k, v, sides, grid, scale)
        else:
            k_BhTd, v_BhTd = (self._pooled(x, sides, grid, counts_T) for x in (k, v))
        if self.within is not None:
            return self._attend_within(q, k_BhTd, v_BhTd, counts_T, grid, scale)
        tiles = torch.arange(len(counts_T), device=q.device)
        seen = counts_T[None]
        if self.without_own:
            seen = seen.masked_fill(tile_of_token(sides, grid, q.device)[:, None] == tiles, 0)
        elif self.local is not None:
            seen = seen - inside_counts(self.local, grid, tile_of_token(sides, grid, q.device), len(counts_T))
        return attend(q, k_BhTd, v_BhTd, scale, self._bias(seen))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens that are seen, each with the mean key and value of its tile in place of its own."""
        sides = self._sides(grid)
        tile_N = tile_of_token(sides, grid, q.device)
        same_NN = tile_N[:, None] == tile_N
        averaging_NN = same_NN / same_NN.sum(1, keepdim=True).to(k.dtype)
        seen_NN = ~same_NN if self.without_own else torch.ones_like(same_NN)
        if self.within is not None:
            region_N = tile_of_token(on_axes(self.within, grid), grid, q.device)
            seen_NN = seen_NN & (region_N[:, None] == region_N)
        if self.local is not None:
            seen_NN = seen_NN & ~self.local.mask(grid, q.device)
        bias = torch.zeros(grid.tokens, grid.tokens, device=q.device).masked_fill(~seen_NN, -math.inf)
        if not self.counted:  # all that is seen of a tile weighs as one token
            bias = bias - (seen_NN.float() @ same_NN.float()).clamp(min=1).log()
        if self.pooling == "expected":
            queries, keys = (x[:, :, None].masked_fill(~same_NN[..., None], -math.inf).amax(3) for x in (q, k))
            return attend(q, keys, attend(queries, k, v, scale, same_NN)[0], scale, bias)
        if self.weight is not None:
            k, v = (x * self._weight_of_tokens(sides, grid, x) for x in (k, v))
        return attend(q, averaging_NN @ k, averaging_NN @ v, scale, bias)

    def _sides(self, grid: Grid) -> tuple[int, ...]:
        """Sides of a tile on every axis."""
        if self.cells is not None:
            return tuple(-(-size // self.cells) for size in grid.sizes)
        return on_axes(self.tile, grid) if self.within is not None else tile_sides(self.tile, grid)

    def _bias(self, seen: Tensor) -> Tensor:
        """What is added to a logit, of the number of tokens that are seen behind it."""
        return seen.float().log() if self.counted else torch.zeros_like(seen.float()).masked_fill(seen == 0, -math.inf)

    def _pooled(self, x: Tensor, sides: tuple[int, ...], grid: Grid, counts_T: Tensor) -> Tensor:
        tiles = to_tiles(x, sides, grid)
        if self.weight is not None:
            tiles = tiles * self._weights(sides)[:, None].to(x.dtype)
        return (tiles.float().sum(3) / counts_T[:, None]).to(x.dtype)

    def _weights(self, sides: tuple[int, ...]) -> Tensor:
        """Weights of a tile's positions, cut as tiles are: (h or 1, t, d or 1)."""
        assert self.weight is not None
        axes = self.weight.dim() - 2
        if axes != len(sides):
            raise ValueError(
                f"PooledAttention of {self.site.path} learned weights for tiles of {axes} axes, and a grid of "
                f"{len(sides)} came: use pooling mean there"
            )
        weight: Tensor = self.weight
        for axis, side in enumerate(sides):
            weight = weight.narrow(1 + axis, 0, side)
        return weight.flatten(1, len(sides))

    def _weight_of_tokens(self, sides: tuple[int, ...], grid: Grid, like: Tensor) -> Tensor:
        tiles = self._weights(sides)[None, :, None].expand(1, -1, tile_count(sides, grid), -1, -1)
        return from_tiles(tiles, sides, grid).to(like.dtype)

    def _attend_within(
        self, q: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, counts_T: Tensor, grid: Grid, scale: float
    ) -> Partial:
        """Attention of the queries of each larger tile over its tiles."""
        assert self.within is not None
        sides, larger = self._sides(grid), on_axes(self.within, grid)
        inner = tuple(wide // side for wide, side in zip(larger, sides, strict=True))
        tiles = Grid(*(-(-size // side) for size, side in zip(grid.sizes, sides, strict=True)))
        q_tiles, k_tiles, v_tiles = to_tiles(q, larger, grid), *(to_tiles(x, inner, tiles) for x in (k_BhTd, v_BhTd))
        seen = to_tiles(counts_T[None, None, :, None], inner, tiles)[0, 0, :, None, :, 0]
        if self.without_own:
            own = tile_of_token(sides, Grid(*larger), q.device)
            seen = seen.masked_fill(own[:, None] == torch.arange(math.prod(inner), device=q.device), 0)
        parts = attend(q_tiles, k_tiles, v_tiles, scale, self._bias(seen))
        output, lse = (from_tiles(part, larger, grid) for part in parts)
        return output, lse


def _expected(
    q: Tensor, k: Tensor, v: Tensor, sides: tuple[int, ...], grid: Grid, scale: float
) -> tuple[Tensor, Tensor]:
    """The largest key of each tile in every channel, and what its largest query gets there, (B, h, T, d)."""
    there_Tt = tokens_in_tiles(sides, grid, q.device)
    q_tiles, k_tiles, v_tiles = (to_tiles(x, sides, grid) for x in (q, k, v))
    queries, keys = (x.masked_fill(~there_Tt[..., None], -math.inf).amax(3) for x in (q_tiles, k_tiles))
    return keys, attend(queries[..., None, :], k_tiles, v_tiles, scale, there_Tt[:, None])[0][..., 0, :]
