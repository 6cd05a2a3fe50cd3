"""The delta convolution layer by layer, as it is described: what every other form is held against.

It calls the layers themselves, so hooks, adapters and quantised weights in them count, and it stays within float16's
range. Shape legend: that of ``blocks.ops.delta_conv.form``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import Grid
from blocks.ops.delta_conv.form import Form, Layers, as_image, as_tokens, stage_size


def delta_conv(hidden_BNC: Tensor, layers: Layers, form: Form, grid: Grid) -> Tensor:
    """Map the hidden state (B, N, C) to the output (B, N, C) of the same dtype."""
    out_BNC = within_range(layers.exit(features(hidden_BNC, layers, form, grid)))
    if layers.pool is not None:
        mean_B1C = hidden_BNC.mean(1, keepdim=True, dtype=_wide(hidden_BNC)).to(hidden_BNC.dtype)
        out_BNC = within_range(out_BNC + within_range(layers.pool(mean_B1C)))
    return out_BNC.to(hidden_BNC.dtype)


def features(hidden_BNC: Tensor, layers: Layers, form: Form, grid: Grid) -> Tensor:
    """What the exit reads, (B, N, F): the gated stages, merged."""
    entry_BEHW = as_image(within_range(layers.entry(hidden_BNC)), grid)
    pairs = zip(layers.depthwise, form.scales, strict=True)
    stages = [_stage(entry_BEHW, conv, form, scale, grid) for conv, scale in pairs]
    return as_tokens(torch.cat(stages, 1) if form.concat else within_range(torch.stack(stages).sum(0)))


def within_range(x: Tensor) -> Tensor:
    """Replace float16's infinities by its largest number; other dtypes have range to spare."""
    return x.clamp(-65504, 65504) if x.dtype == torch.float16 else x


def _stage(entry_BEHW: Tensor, conv: nn.Module, form: Form, scale: float, grid: Grid) -> Tensor:
    if scale == 1:  # not by comparing sizes, which would make a compiled graph of each answer
        return _gated(within_range(conv(entry_BEHW)), form)
    small = F.adaptive_avg_pool2d(entry_BEHW, stage_size(grid, scale))
    gated = _gated(within_range(conv(small)), form)
    return F.interpolate(gated, (grid.height, grid.width), mode="bilinear", align_corners=False)


def _gated(x_BEHW: Tensor, form: Form) -> Tensor:
    """One half times the other, computed in float32 at least: the product leaves float16's range first."""
    signal, gate = x_BEHW.to(_wide(x_BEHW)).chunk(2, 1)
    product = signal * (gate.sigmoid() if form.sigmoid else gate * form.gate_scale)
    limit = torch.finfo(x_BEHW.dtype).max
    return product.clamp(-limit, limit).to(x_BEHW.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """float32, or float64 for what is float64."""
    return torch.promote_types(x.dtype, torch.float32)
