"""The delta convolution in few calls of torch, for eager use.

What differs from ``blocks.ops.delta_conv.naive``: weights in another precision are cast all at once, a gate is one
call, a stage that divides a larger one is pooled from it, the pool branch enters the exit's bias where there is one
image, and nothing is clamped, so float16 is left to the other form. Tokens stay in channels-last order throughout:
planar images cost more at every step on a CPU, and so does the exit in front of up-sampling, which has to pass through
C channels instead of E / 2.

Shape legend: that of ``blocks.ops.delta_conv.form``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from blocks.base import Grid, under_autocast
from blocks.ops.delta_conv.form import Form, Layers, as_image, as_tokens, stage_size

PLAIN = (nn.Parameter, FakeTensor)  # the second where memory is estimated
PRECISIONS = (torch.float32, torch.bfloat16, torch.float64)
Pair = tuple[Tensor, Tensor | None]
"""Weight and bias."""


class Weights(NamedTuple):
    """Weights and biases of the layers, in one precision."""

    entry: Pair
    depthwise: tuple[Pair, ...]
    exit: Pair
    pool: Pair | None


def weights_for(hidden_BNC: Tensor, layers: Layers) -> Weights | None:
    """The weights in the precision to compute in, or ``None`` where only the layers themselves know what they do.

    That is so when code is compiled, where the compiler merges calls; in float16; and where a layer has hooks, is of
    another class (adapters, quantisation), or has weights of another kind or precision than the input, unless autocast
    is on.
    """
    dtype = precision(hidden_BNC)
    if torch.compiler.is_compiling() or dtype not in PRECISIONS or why_not_plain(hidden_BNC, layers):
        return None
    pairs: list[Pair] = [(part.weight, part.bias) for part in _parts(layers)]
    present = [tensor for pair in pairs for tensor in pair if tensor is not None]
    if any(tensor.dtype != dtype for tensor in present):
        cast: Iterator[Tensor] = iter(_Cast.apply([dtype] * len(present), *present))
        pairs = [(next(cast), None if bias is None else next(cast)) for _, bias in pairs]
    stages = len(layers.depthwise)
    pool = None if layers.pool is None else pairs[-1]
    return Weights(pairs[0], tuple(pairs[1 : stages + 1]), pairs[stages + 1], pool)


def why_not_plain(hidden_BNC: Tensor, layers: Layers) -> str:
    """Why weights and biases do not say all of what the layers do to a hidden state; empty if they do."""
    parts = _parts(layers)
    if not all(_is_plain(part) for part in parts):
        return "a layer has hooks, or is of another class than torch's own"
    present = [tensor for part in parts for tensor in (part.weight, part.bias) if tensor is not None]
    if not all(type(tensor) in PLAIN for tensor in present):
        return "a layer holds weights of another kind than plain parameters"
    found, dtype = {tensor.dtype for tensor in present}, precision(hidden_BNC)
    if found != {dtype} and not (found <= {torch.float32, torch.bfloat16} and under_autocast(hidden_BNC)):
        return f"weights are in {', '.join(sorted(map(str, found)))}, and {dtype} is what is computed in"
    return ""


def delta_conv(hidden_BNC: Tensor, weights: Weights, form: Form, grid: Grid) -> Tensor:
    """Map the hidden state (B, N, C) to the output (B, N, C) of the same dtype, computed in that of the weights."""
    if under_autocast(hidden_BNC):
        with torch.autocast(hidden_BNC.device.type, enabled=False):
            return _delta_conv(hidden_BNC.to(weights.entry[0].dtype), weights, form, grid).to(hidden_BNC.dtype)
    return _delta_conv(hidden_BNC, weights, form, grid)


def _delta_conv(hidden_BNC: Tensor, weights: Weights, form: Form, grid: Grid) -> Tensor:
    merged_BFHW = _merged(as_image(F.linear(hidden_BNC, *weights.entry), grid), weights.depthwise, form, grid)
    weight_CF, bias_C = weights.exit
    pooled_BC = None if weights.pool is None else F.linear(hidden_BNC.mean(1), *weights.pool)
    if pooled_BC is not None and len(pooled_BC) == 1:
        bias_C, pooled_BC = pooled_BC[0] + bias_C, None  # type: ignore[operator]
    rows = as_tokens(merged_BFHW).flatten(0, 1)
    out_BNC = torch.addmm(bias_C, rows, weight_CF.T, alpha=form.gate_scale).view(hidden_BNC.shape)  # type: ignore[arg-type]
    if pooled_BC is None:
        return out_BNC
    return out_BNC + pooled_BC[:, None] if out_BNC.requires_grad else out_BNC.add_(pooled_BC[:, None])


def _merged(entry_BEHW: Tensor, depthwise: tuple[Pair, ...], form: Form, grid: Grid) -> Tensor:
    """The gated stages at full size, (B, F, H, W), without the factor of the gate."""
    averages = [entry_BEHW]
    stages: list[Tensor] = []
    for pair, scale in zip(depthwise, form.scales, strict=True):
        if scale == 1:
            stages.append(_gated(entry_BEHW, pair, form))
            continue
        gated = _gated(_pooled(averages, stage_size(grid, scale)), pair, form)
        stages.append(F.interpolate(gated, (grid.height, grid.width), mode="bilinear", align_corners=False))
    if form.concat:
        return torch.cat(stages, 1) if len(stages) > 1 else stages[0]
    return list(itertools.accumulate(stages, torch.add))[-1]


def _pooled(averages: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Adaptive averages of the first image, taken from the smallest of its averages over equal windows that allows it.

    Where the windows are equal ones, the result joins the averages.
    """
    fitting = [x for x in averages if x.shape[-2] % size[0] == 0 and x.shape[-1] % size[1] == 0]
    if not fitting:
        return F.adaptive_avg_pool2d(averages[0], size)
    x = min(fitting, key=Tensor.numel)
    averages.append(F.avg_pool2d(x, (x.shape[-2] // size[0], x.shape[-1] // size[1])))
    return averages[-1]


def _gated(x_BEHW: Tensor, pair: Pair, form: Form) -> Tensor:
    """Depthwise convolution, and one half of its channels times the other."""
    weight, bias = pair
    x_BEHW = F.conv2d(x_BEHW, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    if form.sigmoid:
        return F.glu(x_BEHW, 1)
    signal, gate = x_BEHW.chunk(2, 1)
    return signal * gate


def _parts(layers: Layers) -> list[Any]:
    return [layers.entry, *layers.depthwise, layers.exit, *([] if layers.pool is None else [layers.pool])]


def _is_plain(layer: nn.Module) -> bool:
    """Whether nothing but the class's own forward would run."""
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return type(layer) in (nn.Linear, nn.Conv2d) and not any(hooks) and "forward" not in vars(layer)


def precision(hidden_BNC: Tensor) -> torch.dtype:
    """What is computed in: autocast's precision, or that of the hidden state."""
    return torch.get_autocast_dtype(hidden_BNC.device.type) if under_autocast(hidden_BNC) else hidden_BNC.dtype


class _Cast(torch.autograd.Function):
    """Casts tensors in one call, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtypes: list[torch.dtype], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
        torch._foreach_copy_(cast, tensors)
        return tuple(cast)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *_Cast.apply(ctx.dtypes, *gradients)
