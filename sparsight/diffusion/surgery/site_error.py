"""How far a student's output at a site is from its teacher's.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # a teacher that gives zero must not make an error infinite


def image_tokens(output: Any) -> Tensor:
    """Of what an attention returned, the image's tokens (B, N, C): all, or the first of a pair with those of text.

    In blocks with one stream text stands among them: see ``blocks.base.Layout.image``.
    """
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens


def mean_squares(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square of the student's error, and of the teacher itself, over batch, tokens and channels.

    Both tensors have one shape, e.g. (B, N, C); computed in fp32. The teacher gets no gradient.
    """
    if student.dtype == torch.float32 or torch.compiler.is_compiling():  # compiled, the plain form is one kernel
        student, teacher = student.float(), teacher.detach().float()
        return (student - teacher).square().mean(), teacher.square().mean()
    error, power = _OfHalves.apply(student, teacher.detach())
    return error, power


class _OfHalves(torch.autograd.Function):
    """``mean_squares`` of half precision in half the launches, with equal bits: 5 forward, 2 backward."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        pair = student.new_empty((2, *student.shape), dtype=torch.float32)
        difference, wanted = pair
        wanted.copy_(teacher)
        torch.sub(student, wanted, out=difference)  # widened inside the kernel
        ctx.save_for_backward(difference)
        ctx.dtype = student.dtype
        squares = pair.square()
        error, power = squares[0].mean(), squares[1].mean()
        ctx.mark_non_differentiable(power)
        ctx.set_materialize_grads(False)  # zeros for the power would be a launch
        return error, power

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        scale = gradients[0] / (difference.numel() / 2)
        return torch.mul(difference, scale, out=torch.empty_like(difference, dtype=ctx.dtype)), None


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's mean square: 1 means "as bad as zero"; its square root is the relative L2."""
    error, power = mean_squares(student, teacher)
    return error / power.clamp_min(TINY)
