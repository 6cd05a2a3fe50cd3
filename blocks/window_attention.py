"""The family of windows: plain, shifted, dilated, with a halo, and drawn anew for every image.

Liu et al., "Swin Transformer", arXiv 2103.14030 (shifted windows); Tu et al., "MaxViT", arXiv 2204.01697 (windows and a
dilated grid); Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", arXiv 2103.12731
(halo); Chen et al., "LongLoRA", arXiv 2309.12307 (shifted on half of the heads); Zhang et al., "HiDiffusion", arXiv
2311.17528 (a quarter of the image, shifts drawn).

What is beyond the grid is masked everywhere: padding never takes part in a softmax.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blocks.base import Grid, Site
from blocks.local_attention import LocalAttention, checked_sides, on_axes
from blocks.ops.local import LocalPlan, window_axis
from blocks.ops.partial import Partial, attend


@dataclass(frozen=True)
class _Axis:
    """How one axis is cut: of a dilation's residue class, windows of so many tokens, so far shifted, with a halo."""

    length: int
    window: int
    dilation: int
    shift: int
    halo: int

    @property
    def windows(self) -> int:
        """Windows of all residue classes."""
        return self.dilation * -(-(-(-self.length // self.dilation) + self.shift) // self.window)


class WindowAttention(LocalAttention):
    """Softmax attention over the tokens of each query's window, by the options in Swin, MaxViT, HaloNet or HiDiffusion.

    Numbers of tokens are one, or one for each of the last axes.

    Args:
        site: Where the mixer stands.
        window: Side of a window; one larger than the grid is cut to it.
        windows: Cut every axis into so many windows instead; 2 as in HiDiffusion. ``window`` then counts for nothing.
        dilation: Distance of neighbours in a window; with ``grid`` as large as lets one window reach over the grid.
        shifts: Fractions of a window in [0, 1), each for an equal share of the heads, in order.
        halo: Keys on either side of the window.
        drawn: All heads of an image take one of the shifts, drawn from the image itself, so that a recomputed pass
            draws it again; windows then go round the borders, as published.

    Raises:
        ValueError: If a number is out of range, there are more shifts than heads, or a drawn shift has a halo or
            dilation beside it.
    """

    def __init__(
        self,
        site: Site,
        *,
        window: int | Sequence[int] = 8,
        windows: int | None = None,
        dilation: int | Sequence[int] | Literal["grid"] = 1,
        shifts: Sequence[float] = (0.0,),
        halo: int | Sequence[int] = 0,
        drawn: bool = False,
    ) -> None:
        super().__init__(site)
        self.window = checked_sides("window", window)
        if windows is not None and windows < 1:
            raise ValueError(f"windows of WindowAttention is {windows!r}: give 1 or more for each axis, or none")
        self.windows = windows
        self.dilation: str | int | tuple[int, ...] = "grid"
        if dilation != "grid":
            self.dilation = checked_sides("dilation", _numbers(dilation))
        self.shifts = tuple(shifts)
        if not self.shifts or any(not 0 <= each < 1 for each in self.shifts):
            raise ValueError(f"shifts of WindowAttention are {list(shifts)}: give fractions of a window in [0, 1)")
        if not drawn and len(self.shifts) > site.heads:
            raise ValueError(
                f"shifts of WindowAttention are {list(shifts)}, and {site.path} has {site.heads} heads: give as many "
                "at most"
            )
        self.halo = checked_sides("halo", halo, 0)
        if drawn and (self.dilation != 1 or self.halo != 0):
            raise ValueError("drawn shifts of WindowAttention go with dilation 1 and halo 0 alone: leave them out")
        self.drawn = drawn

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One window that covers the grid."""
        return {"window": list(grid.sizes)}

    @property
    def has_one_plan(self) -> bool:
        """Whether all heads of all images see alike."""
        return len(self.shifts) == 1 and not self.drawn

    def padded(self, grid: Grid) -> Grid:
        """Whole windows where none are shifted; the rims of shifted ones are counted, but are no grid."""
        if any(self.shifts):
            return grid
        return Grid(*(axis.windows * axis.window for axis in self._axes(grid, 0.0)))

    def flops(self, grid: Grid) -> int:
        """Two products of every whole window with itself and its halo: 4 * windows * w^2 * (w + 2 halo)^2 * h * d."""
        shares = [(0.0, self.site.heads)] if self.drawn else [(shift, b - a) for shift, a, b in self._shares()]
        total = 0
        for shift, heads in shares:
            axes = self._axes(grid, shift)
            queries = math.prod(axis.windows * axis.window for axis in axes)
            keys = math.prod(axis.window + 2 * axis.halo for axis in axes)
            total += 4 * queries * keys * heads * self.site.head_dim
        return total

    def plan(self, grid: Grid, device: torch.device | None = None, *, shift: float | None = None) -> LocalPlan:
        """Windows as tiles of queries, with themselves and their halo as keys."""
        axes = self._axes(grid, self.shifts[0] if shift is None else shift)
        plans = [
            window_axis(a.length, window=a.window, dilation=a.dilation, shift=a.shift, halo=a.halo, device=device)
            for a in axes
        ]
        return LocalPlan(grid, plans)

    def block(self, grid: Grid) -> int:
        """Keys of a window and its halo."""
        return math.prod([axis.window + 2 * axis.halo for axis in self._axes(grid, 0.0)])

    def mask(self, grid: Grid, device: torch.device | None = None, *, shift: float | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) sees, by the numbers of their windows: boolean (N, N)."""
        mask = torch.ones(1, 1, dtype=torch.bool, device=device)
        for axis in self._axes(grid, self.shifts[0] if shift is None else shift):
            position = torch.arange(axis.length, device=device)
            inside, remainder = position // axis.dilation, position % axis.dilation
            start = (inside + axis.shift) // axis.window * axis.window - axis.shift - axis.halo
            end = start + axis.window + 2 * axis.halo
            own = (inside >= start[:, None]) & (inside < end[:, None]) & (remainder == remainder[:, None])
            mask = (mask[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)
        return mask

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Attention of (B, h, N, d) tensors inside windows."""

        def mixed(shift: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
            return (self.plan(grid, q.device, shift=shift).mix(q, k, v, scale),)

        return self._by_shift(mixed, q, k, v, grid)[0]

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention inside windows with its log-sum-exp."""

        def mixed(shift: float, q: Tensor, k: Tensor, v: Tensor) -> Partial:
            return self.plan(grid, q.device, shift=shift).attend(q, k, v, scale)

        output, lse = self._by_shift(mixed, q, k, v, grid)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those of other windows masked."""

        def mixed(shift: float, q: Tensor, k: Tensor, v: Tensor) -> Partial:
            return attend(q, k, v, scale, self.mask(grid, q.device, shift=shift))

        output, lse = self._by_shift(mixed, q, k, v, grid)
        return output, lse

    def _by_shift(
        self, mixed: Callable[..., tuple[Tensor, ...]], q: Tensor, k: Tensor, v: Tensor, grid: Grid
    ) -> list[Tensor]:
        """What ``mixed``, of a shift and its heads' queries, keys and values, gives for all heads."""
        if not self.drawn:
            shares = [mixed(shift, q[:, a:b], k[:, a:b], v[:, a:b]) for shift, a, b in self._shares()]
            return [torch.cat(each, 1) for each in zip(*shares, strict=True)]
        there_BN, back_BN = self._rolled(q, grid)
        return [_taken(each, back_BN) for each in mixed(0.0, *(_taken(x, there_BN) for x in (q, k, v)))]

    def _rolled(self, q: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tokens in the order that an image's drawn shift makes of them, and the order that undoes it: each (B, N)."""
        bits_B = q[:, 0, 0].detach().float().view(torch.int32).long().sum(1)
        drawn_B = (bits_B * 2654435761 // 65536) % len(self.shifts)
        there_BN, back_BN = (torch.zeros(len(q), 1, dtype=torch.long, device=q.device) for _ in range(2))
        for axis in self._axes(grid, 0.0):
            shifts = torch.tensor([int(each * axis.window) for each in self.shifts], device=q.device)
            position = torch.arange(axis.length, device=q.device)
            by_B1 = shifts[drawn_B][:, None]
            there, back = ((position + sign * by_B1) % axis.length for sign in (1, -1))
            there_BN, back_BN = (
                (order[..., None] * axis.length + each[:, None]).flatten(1)
                for order, each in ((there_BN, there), (back_BN, back))
            )
        return there_BN, back_BN

    def _shares(self) -> list[tuple[float, int, int]]:
        """Each shift with its first head and the one behind its last."""
        bounds = [part * self.site.heads // len(self.shifts) for part in range(len(self.shifts) + 1)]
        return [(shift, *pair) for shift, pair in zip(self.shifts, itertools.pairwise(bounds), strict=True)]

    def _axes(self, grid: Grid, shift: float) -> list[_Axis]:
        """How every axis is cut at a shift."""
        windows, halos = on_axes(self.window, grid), on_axes(self.halo, grid, 0)
        dilations = on_axes(1 if isinstance(self.dilation, str) else self.dilation, grid)
        axes = []
        for size, window, dilation, halo in zip(grid.sizes, windows, dilations, halos, strict=True):
            if self.windows is not None:
                window = -(-size // self.windows)
            dilation = -(-size // window) if self.dilation == "grid" else min(dilation, size) if dilation > 1 else 1
            members = -(-size // dilation)
            moved = 0 if window >= members else int(shift * window)
            axes.append(_Axis(size, min(window, members), dilation, moved, min(halo, members)))
        return axes


def _taken(x_BhNd: Tensor, order_BN: Tensor) -> Tensor:
    """Tokens of each image in an order of its own."""
    return x_BhNd.gather(2, order_BN[:, None, :, None].expand(-1, x_BhNd.shape[1], -1, x_BhNd.shape[3]))


def _numbers(sides: int | Sequence[int] | str) -> int | Sequence[int]:
    if isinstance(sides, str):
        raise ValueError(f"dilation of WindowAttention is {sides!r}: give numbers of tokens, or grid")
    return sides
