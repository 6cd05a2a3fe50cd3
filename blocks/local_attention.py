"""Base of mixers in which every query sees keys nearby: they say which, and are computed in tiles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import AXES, Grid, Site, SoftmaxMixer
from blocks.ops.local import LocalPlan
from blocks.ops.partial import Partial, attend
from blocks.parts import Part, made_part


class LocalAttention(SoftmaxMixer):
    """Softmax attention over keys that depend on where a query stands, and on nothing else."""

    served_axes = (1, 2, 3)

    @property
    def has_one_plan(self) -> bool:
        """Whether all heads of all images see alike."""
        return True

    @abstractmethod
    def plan(self, grid: Grid, device: torch.device | None = None) -> LocalPlan:
        """Tiles of queries and the keys of each."""

    @abstractmethod
    def block(self, grid: Grid) -> int:
        """Keys of a tile, by numbers alone."""

    @abstractmethod
    def mask(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) sees, by the rule itself: boolean (N, N)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Attention of (B, h, N, d) tensors; memory grows with N."""
        if self.block(grid) >= grid.tokens:  # every block is the grid: to gather it would repeat it
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(grid, q.device), scale=scale)
        return self.plan(grid, q.device).mix(q, k, v, scale)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention with its log-sum-exp; memory grows with N."""
        if self.block(grid) >= grid.tokens:
            return self.reference(q, k, v, grid, scale)
        return self.plan(grid, q.device).attend(q, k, v, scale)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those that are not seen masked; memory grows with N^2."""
        return attend(q, k, v, scale, self.mask(grid, q.device))


def checked_sides(name: str, sides: int | Sequence[int], least: int = 1) -> int | tuple[int, ...]:
    """A number of tokens, or one for each of the last axes.

    Raises:
        ValueError: One is below the least, or there are none or more than three.
    """
    numbers = (sides,) if isinstance(sides, int) else tuple(sides)
    if not 1 <= len(numbers) <= len(AXES) or any(not isinstance(each, int) or each < least for each in numbers):
        raise ValueError(
            f"{name} is one number of tokens or one for each of the last axes, at least {least}, got {sides!r}"
        )
    return sides if isinstance(sides, int) else numbers


def on_axes(sides: int | tuple[int, ...], grid: Grid, missing: int = 1) -> tuple[int, ...]:
    """A number for every axis of a grid; ``missing`` on axes in front of those that are given."""
    axes = len(grid.sizes)
    return (sides,) * axes if isinstance(sides, int) else ((missing,) * axes + sides)[-axes:]


def checked_local(part: Part | Mapping[str, Any], site: Site, name: str) -> LocalAttention:
    """A local mixer whose keys another one leaves out.

    Raises:
        ValueError: It is none, or heads or images see differently by it.
    """
    local = made_part(part, site, name)
    if not isinstance(local, LocalAttention):
        raise ValueError(
            f"{name} is {type(local).__name__}: name a local mixer (NeighborhoodAttention, DiscAttention, "
            "WindowAttention); TileAttention is WindowAttention without shifts"
        )
    if not local.has_one_plan:
        raise ValueError(f"{name} has several shifts, by which heads or images see differently: give it one")
    return local


def inside_counts(local: LocalAttention, grid: Grid, tile_N: Tensor, tiles: int) -> Tensor:
    """How many tokens of each tile every query sees by a local mixer: (N, T).

    Args:
        local: The mixer.
        grid: The grid.
        tile_N: The tile that each token lies in.
        tiles: Number of tiles T.
    """
    plan = local.plan(grid, tile_N.device)
    mask = plan.mask()
    of_keys = tile_N[plan.key_tokens()][:, None].expand(mask.shape)
    counts = torch.zeros(*mask.shape[:2], tiles, device=tile_N.device).scatter_add(2, of_keys, mask.float())
    return plan.tokens(counts[None, None])[0, 0]
