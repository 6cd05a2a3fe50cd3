"""The grid of tokens, read from what a transformer stack is given; this file's text travels inside the exports.

Shape legend: B batch, C channels, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from blocks.base import Grid

IDS = "img_ids"
IDS_PLACE = 4
"""Name and place, among the arguments of a stack, of the positions of packed tokens."""

_grids: Any = WeakTensorKeyDictionary()  # of ids: their grid, and their version when it was read


def grid_from(stack: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Grid | None:
    """The grid of the tokens that a stack makes, by the arguments of its forward pass.

    Latents (B, C, sides ...) are cut into patches. Packed ones (B, N, C) come with ids (N, 3) that name the row and the
    column of each.

    Returns:
        ``None`` while a graph of packed latents is exported, where ids have no values.

    Raises:
        ValueError: Ids are no single image, row by row.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if hidden.ndim == 3:
        return _grid_of(kwargs[IDS] if IDS in kwargs else args[IDS_PLACE])
    sizes, patch = hidden.shape[2:], stack.config.get("patch_size") or 1
    patches = patch if isinstance(patch, (tuple, list)) else (patch,) * len(sizes)
    return Grid(*(size // side for size, side in zip(sizes, patches, strict=True)))


def remember_grid(ids: Tensor, grid: Grid) -> None:
    """Note the grid of ids, so that they need not be read: that waits for the device, and some have no values."""
    _grids[ids] = (grid, _version(ids))


def _grid_of(ids: Tensor) -> Grid | None:
    known = _grids.get(ids)
    if known is not None and known[1] == _version(ids):
        grid: Grid = known[0]
        return grid
    return None if torch.compiler.is_exporting() else _read(ids)


@torch.compiler.disable
def _read(ids: Tensor) -> Grid:
    rows_N3 = (ids[0] if ids.ndim == 3 else ids).detach().cpu().long()
    sides = (rows_N3.amax(0) + 1).clamp_min(1).tolist()
    grid = Grid(*sides[1:])
    raster = torch.cartesian_prod(torch.zeros(1).long(), *(torch.arange(side) for side in sides[1:]))
    if sides[0] > 1 or not torch.equal(rows_N3, raster):
        raise ValueError(
            f"{IDS} are not those of one image, row by row: mixers serve no reference images beside it, which need the "
            "base model"
        )
    remember_grid(ids, grid)
    return grid


def _version(ids: Tensor) -> int | None:
    """Changes as a tensor is written to."""
    return None if ids.is_inference() else ids._version
