"""Neighbourhood attention by the kernels of the package natten (Hassani et al., arXiv 2403.04690 and 2504.16922).

Its windows are ours: moved inwards at borders, even ones a token further up and left, strides by the middle of a group.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from blocks.ops.optional import why_missing
from blocks.ops.partial import Partial

Axis = tuple[int, int, int, int]
"""Length, window, dilation and stride along an axis, in tokens."""


def why_no_natten(axes: Sequence[Axis], like: Tensor) -> str:
    """Why such windows cannot be computed for such queries; empty if they can.

    Args:
        axes: Of the grid.
        like: Queries (B, h, N, d).
    """
    if missing := why_missing("natten"):
        return f"{missing}: install natten in the build for your torch and CUDA"
    for size, window, dilation, _ in axes:
        if min(window, size) < 2:
            return "natten has no window of one token"
        if min(window, size) * dilation > size:
            return (
                f"natten needs an axis of {window * dilation} tokens for a window of {window} with dilation {dilation}"
            )
    if like.device.type == "cpu" and like.requires_grad:
        return "natten computes on a CPU with flex attention, which has no backward pass there"
    queries = like[:1].transpose(1, 2).unflatten(1, [size for size, *_ in axes])
    try:
        import_module("natten.backends").choose_backend(queries, queries, queries, torch_compile=False)
    except (NotImplementedError, ValueError) as error:
        return f"{str(error).splitlines()[0]} (heads of {like.shape[-1]} channels, {like.dtype}, {like.device.type})"
    return ""


def natten_mix(q: Tensor, k: Tensor, v: Tensor, scale: float, axes: Sequence[Axis]) -> Tensor:
    """Attention of (B, h, N, d) over the window of each query."""
    output: Tensor = _tokens(_attend(q, k, v, scale, axes))
    return output


def natten_partial(q: Tensor, k: Tensor, v: Tensor, scale: float, axes: Sequence[Axis]) -> Partial:
    """As ``natten_mix``, with the log-sum-exp."""
    output, lse = _attend(q, k, v, scale, axes, return_lse=True)
    return _tokens(output), _tokens(lse[..., None]).float()


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, axes: Sequence[Axis], **more: Any) -> Any:
    sizes, windows, dilations, strides = zip(*axes, strict=True)
    natten: Any = import_module("natten")
    attention = (natten.na1d, natten.na2d, natten.na3d)[len(axes) - 1]
    images = (x.transpose(1, 2).unflatten(1, sizes).contiguous() for x in (q, k, v))
    window = tuple(map(min, windows, sizes))
    with warnings.catch_warnings():
        if q.device.type == "cpu":
            warnings.filterwarnings("ignore", "flex_attention called without")  # as it does there on purpose
        return attention(*images, kernel_size=window, stride=strides, dilation=dilations, scale=scale, **more)


def _tokens(x_BXhd: Tensor) -> Tensor:
    """(B, h, N, d) out of (B, sizes of the grid, h, d)."""
    return torch.flatten(x_BXhd, 1, -3).transpose(1, 2)
