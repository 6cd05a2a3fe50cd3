"""Cutting a grid into tiles and back; tiles at the far borders are cut off where sides do not divide.

Shape legend: B batch, h heads, N tokens, T tiles, t tokens of a whole tile, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import AXES, Grid
from blocks.ops.remembered import remembered


def checked_tile(tile: int | Sequence[int]) -> int | tuple[int, ...]:
    """A side in tokens, or one for each of the last axes.

    Raises:
        ValueError: A side is below 1, or there are none or more than three.
    """
    sides = (tile,) if isinstance(tile, int) else tuple(tile)
    if not 1 <= len(sides) <= len(AXES) or min(sides) < 1:
        raise ValueError(f"tile is one side or one for each of the last axes, each at least 1 token, got {tile!r}")
    return tile if isinstance(tile, int) else sides


def tile_sides(tile: int | tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """Sides of a tile on every axis, cut to the grid; 1 on axes in front of those that are given."""
    axes = len(grid.sizes)
    sides = (tile,) * axes if isinstance(tile, int) else ((1,) * axes + tile)[-axes:]
    return tuple(min(side, size) for side, size in zip(sides, grid.sizes, strict=True))


def tile_count(sides: tuple[int, ...], grid: Grid) -> int:
    """Number of tiles T."""
    return math.prod([-(-size // side) for side, size in zip(sides, grid.sizes, strict=True)])


def whole_tiles(sides: tuple[int, ...], grid: Grid) -> Grid:
    """The grid that tiles of these sides fill without a rest: the one given, or a larger one."""
    return Grid(*(-(-size // side) * side for side, size in zip(sides, grid.sizes, strict=True)))


def has_rest(sides: tuple[int, ...], grid: Grid) -> bool:
    """Whether tiles at the far borders are cut off; compiled code takes them to be, and serves all grids alike."""
    return torch.compiler.is_compiling() or any(size % side for side, size in zip(sides, grid.sizes, strict=True))


def to_tiles(x_BhNd: Tensor, sides: tuple[int, ...], grid: Grid) -> Tensor:
    """Tokens (B, h, N, d) by tiles (B, h, T, t, d), zero where there is no token."""
    padded = [-size % side for side, size in zip(sides, grid.sizes, strict=True)]
    image = F.pad(x_BhNd.unflatten(2, grid.sizes), (0, 0, *(n for pad in reversed(padded) for n in (0, pad))))
    axes = len(sides)
    for axis, side in enumerate(sides):
        image = image.unflatten(2 + 2 * axis, (-1, side))
    order = (0, 1, *(2 + 2 * axis for axis in range(axes)), *(3 + 2 * axis for axis in range(axes)), 2 + 2 * axes)
    return _packed(image.permute(order)).flatten(2 + axes, 1 + 2 * axes).flatten(2, 1 + axes)


def from_tiles(x_BhTtd: Tensor, sides: tuple[int, ...], grid: Grid) -> Tensor:
    """Tokens (B, h, N, d) out of tiles (B, h, T, t, d)."""
    axes = len(sides)
    counts = [-(-size // side) for side, size in zip(sides, grid.sizes, strict=True)]
    image = x_BhTtd.unflatten(3, sides).unflatten(2, counts)
    order = (0, 1, *(2 + axis + part * axes for axis in range(axes) for part in range(2)), 2 + 2 * axes)
    image = _packed(image.permute(order))
    for axis in range(axes):
        image = image.flatten(2 + axis, 3 + axis)
    for axis, size in enumerate(grid.sizes):
        image = image.narrow(2 + axis, 0, size)
    return _packed(image).flatten(2, 1 + axes)


def _packed(x: Tensor) -> Tensor:
    """A copy in one piece where code is compiled: whether a view would do depends on the grid, and is a graph each."""
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


@remembered
def tokens_in_tiles(sides: tuple[int, ...], grid: Grid, device: torch.device | None = None) -> Tensor:
    """Whether there is a token: boolean (T, t)."""
    ones = torch.ones(1, 1, grid.tokens, 1, dtype=torch.bool, device=device)
    return to_tiles(ones, sides, grid)[0, 0, :, :, 0]


@remembered
def tile_of_token(sides: tuple[int, ...], grid: Grid, device: torch.device | None = None) -> Tensor:
    """The tile that each token lies in: (N,)."""
    count = tile_count(sides, grid)
    numbers = torch.arange(count, device=device)[None, None, :, None, None]
    return from_tiles(numbers.expand(1, 1, count, math.prod(sides), 1), sides, grid)[0, 0, :, 0]
