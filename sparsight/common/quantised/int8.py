"""Weights of frozen linear layers as 8-bit codes of torchao, which keeps them in its own tensors.

Those leave it to autograd what a backward pass keeps: the decoded weights of every layer, which are as large as those
that were to be saved. Here codes are kept, and decoded once more.

Shape legend: O outputs, I inputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import under_autocast


class Codes:
    """Mixed into the class of weights in codes, which is there with torchao alone."""


def coded(weight_OI: Tensor) -> Tensor:
    """A weight each row of which is 8-bit codes times a scale; of its dtype for whoever asks, and on its device."""
    from torchao.quantization import PerRow

    made: Tensor = frozen_int8().from_hp(weight_OI.detach(), granularity=PerRow())
    return made


@cache
def frozen_int8() -> Any:
    """The class of such weights: torchao's, but for what linear layers make of them."""
    from torchao.quantization import Int8Tensor

    class FrozenInt8(Codes, Int8Tensor):
        """A weight that gets no gradient, and passes one on."""

    @FrozenInt8.implements_torch_function(F.linear)
    def _(function: Any, types: Any, args: Any, kwargs: Any) -> Tensor:
        return _linear(*args, **kwargs)

    return FrozenInt8


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, whose names of arguments these are."""
    dtype = torch.get_autocast_dtype(input.device.type) if under_autocast(input) else input.dtype
    x, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    if torch.compiler.is_compiling():  # which settles by itself what is kept
        return F.linear(x, weight.dequantize(dtype), bias)
    if bias is None or not bias.requires_grad:
        found: Tensor = _Linear.apply(x, weight, bias)
        return found
    mixed: Tensor = _Linear.apply(x, weight, None)  # a bias may train beside a weight that does not
    return mixed + bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Any, bias_O: Tensor | None) -> Tensor:
        ctx.weight_OI = weight_OI
        return F.linear(x, weight_OI.dequantize(x.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.weight_OI.dequantize(grads[0].dtype), None, None
