"""Mean squares of a difference and of what it is taken to, in one pass over both, by Triton kernels.

Nothing is kept in fp32: three launches with the gradient, where plain torch widens both tensors and makes seven.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.ops.triton_here import PRECISIONS, Machine, jit, tl, why_not_on

BLOCK = 1024  # elements that a program takes at once
PROGRAMS = 1024  # at most, of the sums; each leaves one, so that their order is always the same


def why_not(ours: Tensor, wanted: Tensor, machine: Machine) -> str:
    """Why the kernels cannot compare two tensors, here and now; empty if they can.

    Args:
        ours: Any shape.
        wanted: Of the same shape, device and dtype.
        machine: See ``blocks.ops.triton_here.this_machine``.
    """
    if reason := why_not_on(ours.device, machine):
        return reason
    if (ours.dtype, ours.device) != (wanted.dtype, wanted.device) or ours.dtype not in PRECISIONS:
        return f"no kernel compares {ours.dtype} on {ours.device} with {wanted.dtype} on {wanted.device}"
    return ""


def mean_squares(ours: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square of ``ours - wanted`` and of ``wanted``, scalars in fp32; only ``ours`` gets a gradient."""
    error, power = _MeanSquares.apply(ours, wanted.detach())
    return error, power


@jit
def sums(
    ours: tl.tensor,
    wanted: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    turns: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each program's share of both means: (2, programs)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    error, power = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for turn in range(turns):
        at = (turn * programs + program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        there = tl.load(wanted + at, mask=at < count, other=0.0).to(tl.float32)
        off = tl.load(ours + at, mask=at < count, other=0.0).to(tl.float32) - there
        error, power = error + off * off, power + there * there
    tl.store(out + program, tl.sum(error, 0) * scale)
    tl.store(out + programs + program, tl.sum(power, 0) * scale)


@jit
def gradients(
    ours: tl.tensor,
    wanted: tl.tensor,
    gradient: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The gradient of the first mean by every element of ours."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = tl.load(wanted + at, mask=at < count, other=0.0).to(tl.float32)
    off = tl.load(ours + at, mask=at < count, other=0.0).to(tl.float32) - there
    by = tl.load(gradient).to(tl.float32) * (2.0 * scale)
    tl.store(out + at, (off * by).to(out.dtype.element_ty), mask=at < count)


class _MeanSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ours: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        ours, wanted = ours.contiguous(), wanted.contiguous()
        count, blocks = ours.numel(), -(-ours.numel() // BLOCK)
        programs = min(blocks, PROGRAMS)
        parts = ours.new_empty((2, programs), dtype=torch.float32)
        sums[(programs,)](ours, wanted, parts, count, -(-blocks // programs), 1 / count, BLOCK=BLOCK)
        error, power = parts.sum(1).unbind()
        ctx.save_for_backward(ours, wanted)
        ctx.mark_non_differentiable(power)
        ctx.set_materialize_grads(False)  # zeros for the power would be a launch
        return error, power

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        ours, wanted = ctx.saved_tensors
        out, count = torch.empty_like(ours), ours.numel()
        gradients[(-(-count // BLOCK),)](ours, wanted, given[0], out, count, 1 / count, BLOCK=BLOCK)
        return out, None
