"""How far a student's output at a site is from its teacher's.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.ops import squares
from blocks.ops.triton_here import this_machine

TINY = 1e-12  # a teacher that gives zero must not make an error infinite


def image_tokens(output: Any) -> Tensor:
    """Of what an attention returned, the image's tokens (B, N, C): all, or the first of a pair with those of text.

    In blocks with one stream text stands among them: see ``blocks.base.Layout.image``.
    """
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens


def mean_squares(student: Tensor, teacher: Tensor, *, fused: bool = False) -> tuple[Tensor, Tensor]:
    """Mean square of the student's error, and of the teacher itself, over batch, tokens and channels.

    Args:
        student: Any shape, e.g. (B, N, C).
        teacher: Of the same shape; it gets no gradient.
        fused: By Triton kernels, where they can; as by torch, computed in fp32.
    """
    if torch.compiler.is_compiling():  # compiled, the plain form is one kernel
        return _plainly(student, teacher)
    if fused and not squares.why_not(student, teacher, this_machine()):
        return squares.mean_squares(student, teacher)
    if student.dtype == torch.float32:
        return _plainly(student, teacher)
    error, power = _OfHalves.apply(student, teacher.detach())
    return error, power


def _plainly(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = student.float(), teacher.detach().float()
    return (student - teacher).square().mean(), teacher.square().mean()


class _OfHalves(torch.autograd.Function):
    """``mean_squares`` of half precision in half the launches, with equal bits: 5 forward, 2 backward."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        wanted = teacher.float()
        difference = student - wanted  # widened inside the kernel
        ctx.save_for_backward(difference)  # alone: a part of a tensor would keep the whole
        ctx.dtype = student.dtype
        squared = torch._foreach_mul([difference, wanted], [difference, wanted])
        error, power = (each.mean() for each in squared)
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
