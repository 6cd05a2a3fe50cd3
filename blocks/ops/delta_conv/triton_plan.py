"""Where the stages of a delta convolution lie for its Triton kernels, and weights as these take them.

Shape legend: that of ``blocks.ops.delta_conv.triton_forward``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from blocks.base import Grid
from blocks.ops.delta_conv.form import stage_size

BY, BX = 16, 16  # pixels of a stage that a program convolves
TILE = 64  # channels, or rows of a weight, of a matrix product
DEPTH = 32  # of its inner dimension at a time
TOKENS = 128  # of a program; a multiple of 4 * 32
MEAN = 32  # channels of the pool branch that a program makes
BLOCK = 256  # pixels of a program that only adds
SPLITS, TOKENS_A_SPLIT, PARTIALS = 8, 2048, 1 << 24  # most splits; fewest tokens, most numbers of all of them


class Plan(NamedTuple):
    """Where the stages of a grid lie.

    Attributes:
        table: See ``blocks.ops.delta_conv.triton_parts``.
        windows: Height and width of the windows that the entry averages itself, zero for others.
        others: Stages that another kernel averages, with the most rows and columns of a window.
        tiles: Tiles of all stages of one image and channel.
        planes: Numbers of the entry and of what is averaged, of all images.
        gradients: Numbers of all stages.
        tile: Rows and columns of tokens of a program of the entry.
    """

    table: tuple[int, ...]
    windows: tuple[int, ...]
    others: tuple[tuple[int, int, int], ...]
    tiles: int
    planes: int
    gradients: int
    tile: tuple[int, int]


@functools.lru_cache(maxsize=1024)
def plan(scales: tuple[float, ...], height: int, width: int, images: int, channels: int) -> Plan:
    """The plan of stages of these scales, for so many images and entry channels."""
    across = 32 if width > 16 else 16
    tile = (TOKENS // across, across)
    table: list[int] = []
    windows: list[int] = []
    others: list[tuple[int, int, int]] = []
    tiles = gradients = 0
    planes = images * channels * height * width
    for number, scale in enumerate(scales):
        sides = stage_size(Grid(height, width), scale)
        beside, count = -(-sides[1] // BX), images * channels * sides[0] * sides[1]
        table += [tiles, beside, *sides, 0 if scale == 1 else planes, gradients, number]
        pairs = list(zip((height, width), sides, strict=True))
        fitting = scale != 1 and all(
            full % side == 0 and most % (full // side) == 0 for (full, side), most in zip(pairs, tile, strict=True)
        )
        windows += [full // side for full, side in pairs] if fitting else [0, 0]
        if scale != 1:
            planes += count
            if not fitting:
                others.append((number, -(-height // sides[0]) + 1, -(-width // sides[1]) + 1))
        tiles, gradients = tiles + -(-sides[0] // BY) * beside, gradients + count
    return Plan(tuple(table), tuple(windows), tuple(others), tiles, planes, gradients, tile)


class Packed(NamedTuple):
    """Weights in the precision that is computed in: kernels of all stages in one piece, and their biases in another."""

    entry: Tensor
    exit: Tensor
    pool: Tensor | None
    taps: Tensor
    biases: Tensor | None


def packed(matrices: list[Tensor], depthwise: list[Tensor], biases: list[Tensor], dtype: torch.dtype) -> Packed:
    """The weights; what is of another precision, or in several pieces, is copied, all at once.

    Args:
        matrices: Weights of entry, exit and, where there is one, pool branch.
        depthwise: Kernels of the stages.
        biases: Theirs, or none.
        dtype: The precision.
    """
    small = [*depthwise, *biases]
    if len(depthwise) == 1 and all(tensor.dtype == dtype for tensor in small):
        small = []
    copied = [*(matrix for matrix in matrices if matrix.dtype != dtype), *small]
    if copied:
        ends = [-(-each.numel() // 16) * 16 if each.dim() == 2 else each.numel() for each in copied]  # whole vectors
        pieces = copied[0].new_empty(sum(ends), dtype=dtype).split(ends)
        pieces = [piece[: each.numel()].view(each.shape) for piece, each in zip(pieces, copied, strict=True)]
        torch._foreach_copy_(pieces, copied)
        rest = iter(pieces)
        matrices = [matrix if matrix.dtype == dtype else next(rest) for matrix in matrices]
        small = list(rest)
    first = small or [*depthwise, *biases]
    pool = matrices[2] if len(matrices) > 2 else None
    return Packed(matrices[0], matrices[1], pool, first[0], first[len(depthwise)] if biases else None)


class Parts:
    """Gradients of weights in one row, and over how many splits of the tokens they are summed.

    Attributes:
        begins: Where entry, its bias, kernels, their biases and exit begin.
        total: Numbers of all of them.
        splits: Number of splits, by shapes alone, so that sums are the same each time.
    """

    def __init__(self, matrices: list[Tensor], depthwise: list[Tensor], tokens: int) -> None:
        entry, out = matrices[:2]
        taps = sum(kernel.numel() for kernel in depthwise)
        sizes = [entry.numel(), len(entry), taps, len(entry) * len(depthwise), out.numel()]
        self.begins = [sum(sizes[:number]) for number in range(len(sizes))]
        self.total = sum(sizes)
        self.splits = max(1, min(SPLITS, tokens // TOKENS_A_SPLIT, PARTIALS // self.total))
