"""The module that stands at a site while a student is being made: the teacher's attention and the student beside it.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.diffusion.surgery.site_error import mean_squares
from sparsight.diffusion.surgery.student import OnGrid, StudentAttention, checked_grid


class Mode(IntEnum):
    """Who computes at a site."""

    TEACHER = 0
    STUDENT = 1
    LAYERWISE = 2
    """The teacher computes, and the student is compared with it on the same input, which gets no gradient from that."""


class AttentionShell(OnGrid):
    """Takes the place of a self-attention and keeps its forward signature.

    Args:
        teacher: The base's attention itself, frozen, no copy.
        student: What will replace it.

    Attributes:
        mode: Who computes; written by :func:`sparsight.diffusion.surgery.replace.set_mode`.
        handed_over: Whether the student has the site for good; while not, it learns beside the teacher.
        output: (B, N, C) that the site last returned in teacher or student mode.
        squares: Mean square of the student's error and of the teacher's output, from the last layer-wise pass.
    """

    def __init__(self, teacher: nn.Module, student: StudentAttention) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.mode = Mode.TEACHER
        self.handed_over = True
        self.output: Tensor | None = None
        self.squares: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C) as the mode says.

        Raises:
            ValueError: The student computes, and refuses what it is given; or the tokens do not fill the grid.
        """
        if self.mode is Mode.STUDENT:
            output = self.student(hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)
        else:
            output = self.teacher(hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)
        if self.mode is Mode.LAYERWISE:
            self._compare(hidden_states, output)
        if torch.is_grad_enabled() and output.requires_grad:
            grid = checked_grid(self.grid, hidden_states, self.student.mixer.site.path)
            output = _Stamp.apply(output, int(self.mode), *grid.sizes)
        self.output = None if self.mode is Mode.LAYERWISE else output
        return output

    def take_output(self) -> Tensor:
        """The last output in teacher or student mode, (B, N, C); the shell lets go of it."""
        assert self.output is not None, "no forward pass has reached this site"
        output, self.output = self.output, None
        return output

    def take_squares(self) -> tuple[Tensor, Tensor]:
        """Mean squares of the last layer-wise pass: the student's error, with gradients, and the teacher's output."""
        assert self.squares is not None, "no layer-wise pass has reached this site"
        squares, self.squares = self.squares, None
        return squares

    def _compare(self, hidden_BNC: Tensor, target_BNC: Tensor) -> None:
        with torch.enable_grad():
            self.squares = mean_squares(self.student(hidden_BNC.detach()), target_BNC.detach())


class _Stamp(torch.autograd.Function):
    """Identity that saves an empty tensor whose shape spells mode and grid.

    Gradient checkpointing recomputes a block in the backward pass, with whatever mode and grid stand then. It compares
    the shapes of saved tensors with the original ones, so a wrong mode or grid ends as a CheckpointError.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, mode: int, *sizes: int) -> Tensor:
        ctx.save_for_backward(output.new_empty((0, mode, *sizes)))
        ctx.axes = len(sizes)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # reading them is what triggers the comparison
        return gradient, None, *[None] * ctx.axes
