"""Choice of a few cells of a grid by looking at large ones first, and then only inside those that were kept.

Lee et al., "A Training-free Sub-quadratic Cost Transformer Model Serving Framework with Hierarchically Pruned
Attention" (HiP), arXiv 2406.09827, halve spans of a sequence; here cells of a grid are halved along every axis, and a
cell is judged by its mean key, where HiP takes one of its keys.

Shape legend: B batch, h heads, T cells, Q queries, n cells that are kept, c children of a cell, d channels of a head.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blocks.base import Grid
from blocks.ops.tiles import tile_sides, to_tiles, whole_tiles


@dataclass(frozen=True)
class Level:
    """Cells of one size.

    Args:
        cells: Their grid.
        means: Mean key of each (B, h, T, d).
    """

    cells: Grid
    means: Tensor


def level_cells(cells: Grid, kept: int) -> list[Grid]:
    """Grids of cells, from the given one on each of twice the sides, as long as there are as many as are kept."""
    found = [cells]
    while max(found[-1].sizes) > 1:
        larger = Grid(*(-(-size // 2) for size in found[-1].sizes))
        if larger.tokens < kept:
            break
        found.append(larger)
    return found


def products(cells: Grid, kept: int) -> int:
    """Products of a query and a mean key that a choice takes, for each query."""
    levels = level_cells(cells, kept)
    return levels[-1].tokens + (len(levels) - 1) * kept * 2 ** len(cells.sizes)


def choose(queries_BhQd: Tensor, sums_BhTd: Tensor, counts_T: Tensor, cells: Grid, kept: int) -> Tensor:
    """Numbers of the cells that each query keeps (B, h, Q, n).

    Args:
        queries_BhQd: Queries.
        sums_BhTd: Sum of the keys in each cell.
        counts_T: Keys in each; at least one.
        cells: Grid of the cells.
        kept: How many n to keep; at most T.
    """
    levels = _levels(sums_BhTd, counts_T, level_cells(cells, kept))
    coarsest = levels[-1]
    chosen = (queries_BhQd @ coarsest.means.mT).topk(kept, dim=-1).indices
    for larger, level in itertools.pairwise(reversed(levels)):
        children, exists = _children(chosen, larger.cells, level.cells)
        index = children[..., None].expand(*children.shape, queries_BhQd.shape[-1])
        means = level.means[:, :, None].expand(-1, -1, children.shape[2], -1, -1).gather(3, index)
        scores = (means @ queries_BhQd[..., None])[..., 0].masked_fill(~exists, -math.inf)
        chosen = children.gather(-1, scores.topk(kept, dim=-1).indices)
    return chosen


def _levels(sums_BhTd: Tensor, counts_T: Tensor, grids: list[Grid]) -> list[Level]:
    """Mean keys of the cells of each size, from sums over the smallest."""
    levels, sums, counts = [Level(grids[0], sums_BhTd / counts_T[:, None])], sums_BhTd, counts_T
    for smaller, cells in itertools.pairwise(grids):
        sides = tile_sides(2, smaller)
        sums = to_tiles(sums, sides, smaller).sum(3)
        counts = to_tiles(counts[None, None, :, None], sides, smaller)[0, 0, :, :, 0].sum(1)
        levels.append(Level(cells, sums / counts[:, None]))
    return levels


def _children(chosen_BhQn: Tensor, cells: Grid, smaller: Grid) -> tuple[Tensor, Tensor]:
    """Numbers of the smaller cells inside each of those kept (B, h, Q, n * c), and whether there is such a one."""
    sides = tile_sides(2, smaller)
    whole = whole_tiles(sides, smaller)
    numbers = torch.arange(smaller.tokens, device=chosen_BhQn.device)[None, None, :, None]
    inside = to_tiles(numbers + 1, sides, smaller)[0, 0, :, :, 0]  # (T, c), zero where there is none
    assert inside.shape == (cells.tokens, whole.tokens // cells.tokens)
    found = inside[chosen_BhQn].flatten(3)
    return (found - 1).clamp(min=0), found > 0
