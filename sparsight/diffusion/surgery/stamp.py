"""What lets gradient checkpointing notice that a block is recomputed in another way than it was computed.

Imports torch only: exported models carry this file's text as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def stamped(output: Tensor, *marks: int) -> Tensor:
    """The output itself; where its gradient is wanted, a recomputation with other marks ends as a CheckpointError.

    Args:
        output: Of any shape.
        marks: Mode, sides of the grid: whatever the output depends on and is not among the inputs.
    """
    if not (torch.is_grad_enabled() and output.requires_grad):
        return output
    stamped_output: Tensor = _Stamp.apply(output, *marks)
    return stamped_output


class _Stamp(torch.autograd.Function):
    """Identity that saves an empty tensor whose shape spells the marks.

    Gradient checkpointing recomputes a block in the backward pass, with whatever mode and grid stand then. It compares
    the shapes of saved tensors with the original ones.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *marks: int) -> Tensor:
        ctx.save_for_backward(output.new_empty((0, *marks)))
        ctx.marks = len(marks)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # reading them is what triggers the comparison
        return gradient, *[None] * ctx.marks
