"""What the forms of the delta convolution share: its settings, its layers, and how stages lie on the grid.

Shape legend: B batch, N tokens (H * W), C channels of the site, E entry channels, F features that the exit reads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from blocks.base import Grid


class Form(NamedTuple):
    """Settings of a delta convolution.

    Attributes:
        scales: Scale of each stage in (0, 1].
        sigmoid: Whether a gate is a * sigmoid(b), rather than a * b * gate_scale.
        gate_scale: Factor of the product; 1 beside a sigmoid.
        concat: Whether stages are concatenated in front of the exit, rather than summed.
    """

    scales: tuple[float, ...]
    sigmoid: bool
    gate_scale: float
    concat: bool


class Layers(NamedTuple):
    """The layers of a delta convolution; ``pool`` is ``None`` where there is no such branch."""

    entry: nn.Module
    depthwise: nn.ModuleList
    exit: nn.Module
    pool: nn.Module | None


def stage_size(grid: Grid, scale: float) -> tuple[int, int]:
    """Sides of a stage; the small term keeps 1/3 of 3 at 1 in spite of rounding."""
    return max(1, math.floor(grid.height * scale + 1e-6)), max(1, math.floor(grid.width * scale + 1e-6))


def as_image(x_BNC: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) tokens as a (B, C, H, W) view, which is in channels-last memory format.

    Transposing tokens would do as well, but for one image it leaves strides that pass for the other format.
    """
    return x_BNC.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)


def as_tokens(x_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) as (B, N, C): a view, if in channels-last memory format."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
