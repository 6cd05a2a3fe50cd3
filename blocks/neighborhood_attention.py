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
from typing import ClassVar, Literal

import torch
from torch import Tensor

from blocks.base import Grid, Site
from blocks.local_attention import LocalAttention, checked_sides, on_axes
from blocks.ops.flex import Rule, flex_mix, flex_partial, why_no_flex
from blocks.ops.local import LocalPlan, at_most, sliding_axis, tiles_of
from blocks.ops.natten import natten_mix, natten_partial, why_no_natten
from blocks.ops.partial import Partial


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
        backend: ``torch``: tiles of queries with the block of their keys; ``flex``: flex attention, which compiles a
            kernel of the rule; ``natten``: the kernels of that package.

    Raises:
        ValueError: If a number is below 1, there are more than three, a stride is longer than the window, or there is
            no such backend.
    """

    backends: ClassVar[dict[str, str]] = {
        "torch": "",
        "flex": "CUDA and heads of 16 channels or more, or a CPU without gradients and outside of Merge",
        "natten": "the package natten, and what its kernels need",
    }

    def __init__(
        self,
        site: Site,
        *,
        kernel_size: int | Sequence[int] = 13,
        dilation: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        backend: Literal["torch", "flex", "natten"] = "torch",
    ) -> None:
        super().__init__(site)
        self.backend = self.checked_backend(backend)
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

    def missing_backend(self, name: str, grid: Grid, like: Tensor, *, mass: bool = False) -> str:
        """Why queries cannot be computed so; with ``mass``, together with their log-sum-exp."""
        if name == "natten":
            return why_no_natten(self._axes(grid), like)
        return why_no_flex(like, mass=mass) if name == "flex" else ""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Attention of (B, h, N, d) tensors."""
        backend = self.serving_backend(grid, q)
        if backend == "natten":
            return natten_mix(q, k, v, scale, self._axes(grid))
        if backend == "flex":
            return flex_mix(q, k, v, scale, *self._rule(grid))
        return super().mix(q, k, v, grid, scale)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention with its log-sum-exp."""
        backend = self.serving_backend(grid, q, mass=True)
        if backend == "natten":
            return natten_partial(q, k, v, scale, self._axes(grid))
        if backend == "flex":
            return flex_partial(q, k, v, scale, *self._rule(grid))
        return super().partial(q, k, v, grid, scale)

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
            position = torch.arange(axis[0], device=device)
            own = _are_near(position[:, None], position, *axis)
            mask = (mask[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)
        return mask

    def _rule(self, grid: Grid) -> tuple[Rule, object]:
        """Which keys a query sees, of the numbers of tokens, and a name for that rule."""
        axes = self._axes(grid)

        def near(query: Tensor, key: Tensor) -> Tensor:
            seen, behind = (query >= 0) & (key >= 0), 1  # always true: where a loop over axes can begin
            for axis in reversed(axes):
                position, other = query // behind % axis[0], key // behind % axis[0]
                seen, behind = seen & _are_near(position, other, *axis), behind * axis[0]
            return seen

        return near, (type(self), tuple(axes))

    def _axes(self, grid: Grid) -> list[tuple[int, int, int, int]]:
        """Length, window, dilation and stride of every axis."""
        windows, dilations, strides = (on_axes(each, grid) for each in (self.kernel_size, self.dilation, self.stride))
        dilations = tuple(min(d, size) if d > 1 else 1 for d, size in zip(dilations, grid.sizes, strict=True))
        return list(zip(grid.sizes, windows, dilations, strides, strict=True))


def _are_near(query: Tensor, key: Tensor, length: int, window: int, dilation: int, stride: int) -> Tensor:
    """Whether the position of a key lies within the window of a query's, along one axis."""
    remainder, inside = query % dilation, query // dilation
    last = (length - 1 - remainder) // dilation
    leader = torch.minimum(inside // stride * stride + stride // 2, last)
    side = (last + 1).clamp(max=window)
    start = torch.minimum((leader - window // 2).clamp(min=0), last + 1 - side)
    other = key // dilation
    return (key % dilation == remainder) & (other >= start) & (other < start + side)
