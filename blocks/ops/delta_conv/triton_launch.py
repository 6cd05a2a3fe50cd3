"""The launches of the delta convolution's Triton kernels: three forward, eight in a backward pass without the input's.

Shape legend: that of ``blocks.ops.delta_conv.triton_forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.ops.delta_conv import triton_backward, triton_forward
from blocks.ops.delta_conv.triton_plan import BLOCK, BX, BY, DEPTH, MEAN, TILE, Parts, Plan, packed, plan


def compute(
    hidden: Tensor,
    matrices: list[Tensor],
    matrix_biases: list[Tensor],
    depthwise: list[Tensor],
    biases: list[Tensor],
    scales: list[float],
    sigmoid: bool,
    gate_scale: float,
    concat: bool,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, N, C); planes of the entry and of its averages; the mean token (B, C), if a branch maps it."""
    images, _, channels = hidden.shape
    entry_channels, stages, has_pool = len(matrix_biases[0]), len(scales), len(matrices) > 2
    layout, half = plan(tuple(scales), height, width, images, entry_channels), entry_channels // 2
    weights = packed(matrices, depthwise, biases, dtype)
    planes = hidden.new_empty(layout.planes, dtype=dtype)
    sums = _project(hidden, weights.entry, matrix_biases[0], planes, layout, height, width, stages=stages)
    for stage, rows, columns in layout.others:
        pixels = layout.table[7 * stage + 2] * layout.table[7 * stage + 3]
        average = triton_forward.average[(-(-pixels // BLOCK), entry_channels, images)]
        average(planes, layout.table, entry_channels, height, width, stage, rows, columns, BLOCK=BLOCK)
    gated = planes.new_empty(layout.gradients // 2)
    pooled, mean = (hidden.new_empty(images, channels, dtype=torch.float32) for _ in range(2))
    chunks = -(-channels // MEAN)
    pools = images * chunks if has_pool else 0
    triton_forward.mix_stages[(pools + layout.tiles * half * images,)](
        planes,
        weights.taps,
        weights.biases,
        gated,
        sums,
        weights.pool if has_pool else weights.exit,  # which is not read
        matrix_biases[-1],
        pooled,
        mean,
        layout.table,
        layout.tiles,
        half,
        channels,
        height * width,
        sums.shape[1],
        chunks,
        pools,
        gate_scale,
        SIGMOID=sigmoid,
        BO=MEAN,
        BC=TILE,
        **_convolution(depthwise, biases),
    )
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    added = pooled if has_pool else None
    _leave(gated, weights.exit, matrix_biases[1], added, out, layout.table, half, height, width, concat=concat)
    return out, planes, mean if has_pool else mean.new_empty(0)


def compute_gradients(
    gradient: Tensor,
    hidden: Tensor,
    planes: Tensor,
    mean: Tensor,
    matrices: list[Tensor],
    depthwise: list[Tensor],
    biases: list[Tensor],
    scales: list[float],
    sigmoid: bool,
    gate_scale: float,
    concat: bool,
    height: int,
    width: int,
    of_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in float32.

    Returns:
        Those of the hidden state, empty if they are not wanted; of entry, its bias, kernels, their biases and exit in
        a row; of the pool branch's weight (empty without one); and of the biases of exit and pool branch (2, C).
    """
    images, tokens, channels = hidden.shape
    entry_channels, features = matrices[0].shape[0], matrices[1].shape[1]
    half, stages = entry_channels // 2, len(scales)
    layout = plan(tuple(scales), height, width, images, entry_channels)
    weights, options = packed(matrices, depthwise, biases, planes.dtype), _convolution(depthwise, biases)
    table, precision = layout.table, options["PRECISION"]
    of_features = planes.new_empty(images * features * tokens)
    sums = _project(gradient, weights.exit.T, None, of_features, layout, height, width)
    gated, before = planes.new_empty(layout.gradients // 2), planes.new_empty(layout.gradients)
    triton_backward.gate_gradients[(layout.tiles * half * images,)](
        planes,
        weights.taps,
        weights.biases,
        of_features,
        gated,
        before,
        table,
        layout.tiles,
        half,
        height,
        width,
        gate_scale,
        SIGMOID=sigmoid,
        CONCAT=concat,
        NEAR=2 * BX,
        **options,
    )
    parts = Parts(matrices, depthwise, images * tokens)
    of_weights = planes.new_empty(parts.splits, parts.total, dtype=torch.float32)
    at = [of_weights[:, begin:] for begin in parts.begins]
    kernel = options["K"]
    del options["HAS_BIAS"]
    triton_backward.tap_gradients[(entry_channels * kernel, stages, parts.splits)](
        planes, before, at[2], at[3], table, images, entry_channels, parts.total, parts.splits, **options
    )
    of_planes = torch.empty_like(before)
    triton_backward.input_gradients[(layout.tiles * entry_channels * images,)](
        before, weights.taps, of_planes, table, layout.tiles, entry_channels, **options
    )
    if list(scales) != [1]:
        of_stages, of_planes = of_planes, planes.new_empty(images * entry_channels * tokens)
        triton_backward.collect[(-(-tokens // BLOCK), entry_channels, images)](
            of_stages, of_planes, table, entry_channels, height, width, STAGES=stages, BLOCK=BLOCK
        )
    whole = (0, 0, height, width, 0, 0, 0)
    shared: dict[str, Any] = {"BR": TILE, "BC": TILE, "BN": DEPTH, "PRECISION": precision}
    for source, dense, first, rows, layouts, strides, wide in (
        (gated, gradient, 4, half, table, (1, features), concat),
        (of_planes, hidden, 0, entry_channels, whole, (channels, 1), True),
    ):
        count, row_tiles = len(layouts) // 7, -(-rows // TILE)
        grid = (row_tiles * (count if wide else 1), -(-channels // TILE), parts.splits)
        triton_backward.matrix_gradients[grid](
            source,
            dense,
            at[first],
            at[1],
            layouts,
            images,
            rows,
            channels,
            height,
            width,
            *strides,
            parts.total,
            parts.splits,
            row_tiles,
            HAS_BIAS=first == 0,
            STAGES=count,
            CONCAT=wide,
            **shared,
        )
    flat = of_weights[0] if parts.splits == 1 else of_weights.sum(0)
    of_biases = flat.new_empty(2, channels)
    of_pool = flat.new_empty(channels if len(mean) else 0, channels)
    if len(mean):
        side = -(-channels // TILE)
        triton_backward.pool_gradients[(side, side)](
            sums, mean, of_pool, of_biases, images, channels, sums.shape[1], BO=TILE, BC=TILE
        )
    else:
        torch.sum(sums, (0, 1), out=of_biases[0])
    of_hidden = hidden.new_empty(0)
    if of_input:
        of_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        added = None if weights.pool is None else (sums.sum(1) @ weights.pool.float() / tokens).contiguous()
        _leave(of_planes, weights.entry.T, None, added, of_hidden, whole, entry_channels, height, width, concat=False)
    return of_hidden, flat, of_pool, of_biases


def _project(
    x: Tensor, weight: Tensor, bias: Tensor | None, planes: Tensor, layout: Plan, H: int, W: int, *, stages: int = 0
) -> Tensor:
    """Write planes of a linear map of tokens, and averages of them; sums of the tokens by tiles (B, tiles, C)."""
    images, _, channels = x.shape
    rows, columns = layout.tile
    tiles = -(-H // rows) * -(-W // columns)
    sums = x.new_empty(images, tiles, channels, dtype=torch.float32)
    triton_forward.project[(tiles, -(-len(weight) // TILE), images)](
        x,
        weight,
        bias,
        planes,
        sums,
        layout.table,
        channels,
        len(weight),
        H,
        W,
        *weight.stride(),
        HAS_BIAS=bias is not None,
        HELD=bias is not None,  # no gradient
        STAGES=stages,
        WINDOWS=layout.windows,
        TY=rows,
        TX=columns,
        BE=TILE,
        BC=DEPTH,
        PRECISION=_precision(weight),
    )
    return sums


def _leave(
    planes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    out: Tensor,
    table: tuple[int, ...],
    rows: int,
    H: int,
    W: int,
    *,
    concat: bool,
) -> None:
    """Write tokens of a linear map of planes, with a bias, and rows (B, C) that are added to an image's tokens."""
    images, tokens, channels = out.shape
    triton_forward.leave[(-(-tokens // TILE), -(-channels // TILE), images)](
        planes,
        weight,
        bias,
        added,
        out,
        table,
        rows,
        channels,
        H,
        W,
        *weight.stride(),
        HAS_BIAS=bias is not None,
        HAS_POOL=added is not None,
        HELD=bias is not None,  # no gradient
        STAGES=len(table) // 7,
        CONCAT=concat,
        BN=TILE,
        BG=DEPTH,
        BO=TILE,
        PRECISION=_precision(weight),
    )


def _convolution(depthwise: list[Tensor], biases: list[Tensor]) -> dict[str, Any]:
    """What the kernels that convolve are made for."""
    side = depthwise[0].shape[-1]
    around = 1 << (BX + side - 2).bit_length()
    return {
        "K": side,
        "HAS_BIAS": bool(biases),
        "STAGES": len(depthwise),
        "BY": BY,
        "BX": BX,
        "KW": max(16, around),
        "PRECISION": _precision(depthwise[0]),
    }


def _precision(weight: Tensor) -> str:
    """Of products of float32, as torch is told to make them."""
    return "tf32" if weight.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"
