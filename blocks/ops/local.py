"""Attention of every query to keys nearby, with cost linear in the tokens: tiles of queries, each with a block of keys.

Along each axis a plan says which positions the queries of a tile and its keys are, and which of these keys each query
sees; the plans of all axes make that of a grid. Keys are gathered, so that blocks may overlap.

Shape legend: B batch, h heads, N tokens, L positions of an axis, T tiles, a queries of a tile, c keys of its block,
d channels of a head; r residue classes of a dilation (positions with an equal remainder), J positions of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid
from blocks.ops.partial import Partial, attend
from blocks.ops.remembered import remembered


def at_most(count: int, most: int) -> int:
    """The smaller one; compiled code takes the count, so that one graph serves short axes as well."""
    return count if torch.compiler.is_compiling() else min(count, most)


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """Tiles along one axis.

    Args:
        queries: Position of each query of a tile, (T, a); those beyond the axis repeat another one.
        keys: Position of each key of a tile's block, (T, c); those beyond the axis repeat another one.
        seen: Whether a query sees a key, (T, a, c); each sees one at least, and none beyond the axis.
        place: Where each position stands among all queries of the tiles, (L,).
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor
    place: Tensor


@remembered
def sliding_axis(
    length: int, *, window: int, dilation: int = 1, stride: int = 1, tile: int = 8, device: Any = None
) -> AxisPlan:
    """Each query sees the window around it, moved inwards at the borders so that it is whole.

    Args:
        length: Positions L.
        window: Keys that a query sees; an even number has one more before the query than behind it.
        dilation: Positions of one remainder see each other alone, as if there were no others; at most L.
        stride: So many neighbours share the window of the one in their middle.
        tile: Queries of a tile, about.
        device: Of the plan.
    """
    tile = -(-tile // stride) * stride
    classes, longest, sizes_r11 = _classes(length, dilation, device)
    tiles = -(-longest // tile)
    wanted_Ta = torch.arange(tiles, device=device)[:, None] * tile + torch.arange(tile, device=device)
    queries_rTa = torch.minimum(wanted_Ta, sizes_r11 - 1)
    leader_rTa = torch.minimum(queries_rTa // stride * stride + stride // 2, sizes_r11 - 1)
    side_r11 = sizes_r11.clamp(max=window)
    low_rTa = torch.minimum((leader_rTa - window // 2).clamp(min=0), sizes_r11 - side_r11)
    count = at_most(tile - stride + window, longest)
    middle_T1 = torch.arange(tiles, device=device)[:, None] * tile + stride // 2
    first_rT1 = torch.minimum(middle_T1 - window // 2, sizes_r11 - count).clamp(min=0)
    keys_rTc = first_rT1 + torch.arange(count, device=device)
    position = torch.arange(length, device=device)
    place_L = (position % dilation * tiles + position // dilation // tile) * tile + position // dilation % tile
    return _plan(length, classes, sizes_r11, queries_rTa, keys_rTc, (low_rTa, low_rTa + side_r11), place_L)


@remembered
def window_axis(
    length: int, *, window: int, dilation: int = 1, shift: int = 0, halo: int = 0, device: Any = None
) -> AxisPlan:
    """The axis is cut into windows; each query sees its own window, and a halo on either side of it.

    Args:
        length: Positions L.
        window: Positions of a window.
        dilation: Positions of one remainder are cut into windows, as if there were no others; at most L.
        shift: How far windows lie before those that start at the first position; less than a window.
        halo: Keys before and behind the window.
        device: Of the plan.
    """
    classes, longest, sizes_r11 = _classes(length, dilation, device)
    tiles = -(-(longest + shift) // window)
    start_T1 = torch.arange(tiles, device=device)[:, None] * window - shift
    queries_Ta = start_T1 + torch.arange(window, device=device)
    queries_rTa = torch.minimum(queries_Ta.clamp(min=0), sizes_r11 - 1)
    keys_Tc = start_T1 - halo + torch.arange(window + 2 * halo, device=device)
    low_rTa = (queries_rTa + shift) // window * window - shift - halo
    position = torch.arange(length, device=device)
    member_L = position // dilation + shift
    place_L = (position % dilation * tiles + member_L // window) * window + member_L % window
    bounds = (low_rTa, low_rTa + window + 2 * halo)
    return _plan(length, classes, sizes_r11, queries_rTa, keys_Tc.expand(dilation, -1, -1), bounds, place_L)


@remembered
def reach_axis(length: int, *, reach: int, tile: int = 8, device: Any = None) -> AxisPlan:
    """Each query sees keys up to ``reach`` positions away; windows are cut off at the borders."""
    classes, _, sizes_r11 = _classes(length, 1, device)
    tiles, count = -(-length // tile), at_most(tile + 2 * reach, length)
    start_T1 = torch.arange(tiles, device=device)[:, None] * tile
    queries_rTa = (start_T1 + torch.arange(tile, device=device)).clamp(max=length - 1)[None]
    keys_rTc = ((start_T1 - reach).clamp(max=length - count).clamp(min=0) + torch.arange(count, device=device))[None]
    bounds = (queries_rTa - reach, queries_rTa + reach + 1)
    return _plan(length, classes, sizes_r11, queries_rTa, keys_rTc, bounds, torch.arange(length, device=device))


@remembered
def block_axis(length: int, *, tile: int, halo: int = 0, device: Any = None) -> AxisPlan:
    """Queries of a tile all see one block: the tile and a halo on either side, moved inwards at the borders.

    Args:
        length: Positions L.
        tile: Queries of a tile.
        halo: Keys before and behind it.
        device: Of the plan.
    """
    tiles, count = -(-length // tile), at_most(tile + 2 * halo, length)
    start_T1 = torch.arange(tiles, device=device)[:, None] * tile
    queries_Ta = (start_T1 + torch.arange(tile, device=device)).clamp(max=length - 1)
    first_T1 = (start_T1 - halo).clamp(max=length - count).clamp(min=0)
    keys_Tc = first_T1 + torch.arange(count, device=device)
    seen_Tac = (keys_Tc < length)[:, None].expand(-1, tile, -1)
    return AxisPlan(queries_Ta, keys_Tc.clamp(max=length - 1), seen_Tac, torch.arange(length, device=device))


def _classes(length: int, dilation: int, device: Any) -> tuple[Tensor, int, Tensor]:
    """Residue classes (r, 1, 1), positions of the longest, and of each (r, 1, 1)."""
    classes_r11 = torch.arange(dilation, device=device)[:, None, None]
    return classes_r11, -(-length // dilation), (length - 1 - classes_r11) // dilation + 1


def _plan(
    length: int,
    classes_r11: Tensor,
    sizes_r11: Tensor,
    queries_rTa: Tensor,
    keys_rTc: Tensor,
    bounds: tuple[Tensor, Tensor],
    place_L: Tensor,
) -> AxisPlan:
    """A plan from numbers inside residue classes."""
    key = keys_rTc[:, :, None]
    low, high = (bound[..., None] for bound in bounds)
    seen_rTac = (key >= low) & (key < high) & (key >= 0) & (key < sizes_r11[..., None])
    first_c = torch.arange(key.shape[-1], device=key.device) == 0
    seen_rTac = seen_rTac | (~seen_rTac.any(-1, keepdim=True) & first_c)  # of queries that are beyond the axis
    dilation = classes_r11.shape[0]
    queries, keys = (
        (classes_r11 + dilation * inside.clamp(min=0)).clamp(max=length - 1).flatten(0, 1)
        for inside in (queries_rTa, keys_rTc)
    )
    return AxisPlan(queries, keys, seen_rTac.flatten(0, 1), place_L)


@dataclass(frozen=True)
class LocalPlan:
    """Tiles of a grid.

    Args:
        grid: The grid.
        axes: Plan of each of its axes.
        also: What else must hold for a query to see a key, of their distance along each axis, (T, a, c) broadcast.
    """

    grid: Grid
    axes: Sequence[AxisPlan]
    also: Callable[[Sequence[Tensor]], Tensor] | None = None

    def queries(self, x_BhNd: Tensor) -> Tensor:
        """Tokens (B, h, N, d) as queries of tiles (B, h, T, a, d)."""
        return self._gathered(x_BhNd, [axis.queries for axis in self.axes])

    def keys(self, x_BhNd: Tensor) -> Tensor:
        """Tokens (B, h, N, d) as keys of tiles (B, h, T, c, d)."""
        return self._gathered(x_BhNd, [axis.keys for axis in self.axes])

    def tokens(self, x_BhTad: Tensor) -> Tensor:
        """Tokens (B, h, N, d) out of queries of tiles (B, h, T, a, d)."""
        count = len(self.axes)
        shapes = [axis.queries.shape for axis in self.axes]
        image = x_BhTad.unflatten(3, [a for _, a in shapes]).unflatten(2, [t for t, _ in shapes])
        order = (0, 1, *(2 + axis + part * count for axis in range(count) for part in range(2)), 2 + 2 * count)
        image = image.permute(order)
        for number, axis in enumerate(self.axes):
            image = image.flatten(2 + number, 3 + number).index_select(2 + number, axis.place)
        return image.flatten(2, 1 + count)

    def mask(self) -> Tensor:
        """Whether each query of a tile sees each key of its block: boolean (T, a, c)."""
        axes = tuple(self.axes)
        return _plain_mask(axes) if self.also is None else _mask(axes, self.also)

    def key_tokens(self) -> Tensor:
        """Number of the token that each key of a tile is, (T, c)."""
        return self._numbers([axis.keys for axis in self.axes])

    def query_tokens(self) -> Tensor:
        """Number of the token that each query of a tile is, (T, a)."""
        return self._numbers([axis.queries for axis in self.axes])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
        """Softmax attention of tokens (B, h, N, d) with its log-sum-exp."""
        parts = attend(self.queries(q), self.keys(k), self.keys(v), scale, self.mask())
        output, lse = (self.tokens(part) for part in parts)
        return output, lse

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Softmax attention of tokens (B, h, N, d) by torch's fused kernel."""
        tiles = [self.queries(q), self.keys(k), self.keys(v)]
        q_tiles, k_tiles, v_tiles = (x.flatten(0, 1) for x in tiles)
        mixed = F.scaled_dot_product_attention(q_tiles, k_tiles, v_tiles, attn_mask=self.mask()[None], scale=scale)
        return self.tokens(mixed.unflatten(0, q.shape[:2]))

    def _numbers(self, positions: Sequence[Tensor]) -> Tensor:
        """Numbers of tokens, from their positions along each axis."""
        count, numbers, stride = len(positions), None, self.grid.tokens
        for number, (each, size) in enumerate(zip(positions, self.grid.sizes, strict=True)):
            stride //= size
            own = _spread(each[:, None], number, count) * stride
            numbers = own if numbers is None else numbers + own
        assert numbers is not None
        return _joined(numbers, count)[:, 0]

    def _gathered(self, x_BhNd: Tensor, positions: Sequence[Tensor]) -> Tensor:
        count = len(positions)
        image = x_BhNd.unflatten(2, self.grid.sizes)
        for number, each in enumerate(positions):
            image = image.index_select(2 + 2 * number, each.flatten()).unflatten(2 + 2 * number, each.shape)
        order = (0, 1, *(2 + 2 * axis for axis in range(count)), *(3 + 2 * axis for axis in range(count)))
        return image.permute(*order, 2 + 2 * count).flatten(2 + count, 1 + 2 * count).flatten(2, 1 + count)


def _mask(axes: tuple[AxisPlan, ...], also: Callable[[Sequence[Tensor]], Tensor] | None = None) -> Tensor:
    """Which keys of its block a query sees along all axes: boolean (T, a, c)."""
    seen, apart = None, []
    for number, axis in enumerate(axes):
        own = _spread(axis.seen, number, len(axes))
        seen = own if seen is None else seen & own
        if also is not None:
            apart.append(_spread(axis.keys[:, None] - axis.queries[..., None], number, len(axes)))
    assert seen is not None
    return _joined(seen if also is None else seen & also(apart), len(axes))


@remembered
def _plain_mask(axes: tuple[AxisPlan, ...]) -> Tensor:
    """As ``_mask`` without more to hold."""
    return _mask(axes)


def _spread(own_Tac: Tensor, number: int, count: int) -> Tensor:
    """What holds along one axis, broadcast to (T of each axis, a of each axis, c of each axis)."""
    shape = [1] * (3 * count)
    shape[number], shape[count + number], shape[2 * count + number] = own_Tac.shape
    return own_Tac.reshape(shape)


def _joined(x: Tensor, count: int) -> Tensor:
    """(T, a, c) of the grid from those of each axis."""
    return x.flatten(2 * count).flatten(count, 2 * count - 1).flatten(0, count - 1)


def tiles_of(sides: Sequence[int]) -> tuple[int, ...]:
    """Queries of a tile along each axis, for windows of these sides.

    Longer tiles gather fewer keys twice and multiply by more keys that are masked.
    """
    most = {1: 32, 2: 8, 3: 4}[len(sides)]
    return tuple(min(most, max(2, side)) for side in sides)
