"""What stands at a site while a student is being made: teacher and student of one self-attention, and who computes.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import Layout
from sparsight.diffusion.surgery.site_error import image_tokens, mean_squares
from sparsight.diffusion.surgery.stamp import stamped
from sparsight.diffusion.surgery.student import OnGrid, StudentAttention, delivered_grid

TRITON = "triton"  # a mixer's backend


class Mode(IntEnum):
    """Who computes at a site: the attention that was there, the mixer, or both."""

    TEACHER = 0
    STUDENT = 1
    LAYERWISE = 2
    """The teacher computes, and the student is compared with it on the same input, which gets no gradient from that."""
    MEASURED = 3
    """As layer-wise, without gradients: a mode of its own, as compiled code is not guarded against inference mode."""


BESIDE = (Mode.LAYERWISE, Mode.MEASURED)
"""Those in which the student computes beside the teacher."""


class Shell(OnGrid):
    """A self-attention and its student, behind the attention's signature: all that training, export and reports ask of.

    Attributes:
        mode: Who computes; written by ``sparsight.diffusion.surgery.replace.set_mode``.
        handed_over: Whether the student has the site for good; while not, it learns beside the teacher.
        mixer: The student's mixer.
        output: (B, N, C) that the site last returned in teacher or student mode: see ``compared``.
        squares: Mean square of the student's error and of the teacher's output, from the last layer-wise pass.
    """

    mode: Mode = Mode.TEACHER
    handed_over: bool = True
    output: Tensor | None = None
    squares: tuple[Tensor, Tensor] | None = None
    mixer: Any

    @property
    def attention(self) -> Any:
        """The module that computes in teacher mode, and holds the teacher's layers."""
        raise NotImplementedError

    def as_teacher(self) -> Any:
        """The teacher alone, of the same tensors."""
        raise NotImplementedError

    def as_student(self) -> Any:
        """The student alone, of the same tensors, under the names that exports have."""
        raise NotImplementedError

    def teacher_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the teacher makes of (B, N, C), and of text at a joint site."""
        raise NotImplementedError

    def student_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the student makes of (B, N, C), and of text at a joint site."""
        raise NotImplementedError

    def compared(self, output: Any) -> Tensor:
        """Of what a pass returned, the part that losses compare: (B, N, C), the image's tokens.

        Of several outputs they are the first; text may stand in it, too.
        """
        tokens = image_tokens(output)
        return self._layout(tokens).image(tokens)

    def compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of the student's error and of the teacher's output, in launches as few as the mixer's."""
        return mean_squares(student, teacher, fused=self.mixer.backend == TRITON)

    def _layout(self, tokens_BNC: Tensor) -> Layout:
        site = self.mixer.site
        layout: Layout = site.layout(delivered_grid(self.grid, site.path), tokens_BNC.shape[1])
        return layout

    def trained_units(self) -> Iterable[nn.Module]:
        """Modules that a backward pass through the student alone asks for, each called as a whole."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Map (B, N, C) to (B, N, C) as the mode says; at a joint site text as well.

        Raises:
            ValueError: The student computes, and refuses what it is given; or the tokens do not fill the grid.
        """
        one_pass = self.student_pass if self.mode is Mode.STUDENT else self.teacher_pass
        output = one_pass(hidden_states, *args, **kwargs)
        if self.mode in BESIDE:
            with torch.set_grad_enabled(self.mode is Mode.LAYERWISE):
                student = self.student_pass(hidden_states.detach(), *_detached(args), **_detached(kwargs))
                self.squares = self.compare(self.compared(student), self.compared(output))
        image, *text = output if isinstance(output, tuple) else (output,)
        if torch.is_grad_enabled() and image.requires_grad:
            image = stamped(image, int(self.mode), *self._layout(hidden_states).grid.sizes)
            output = (image, *text) if isinstance(output, tuple) else image
        self.output = None if self.mode in BESIDE else self.compared(output)
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


def _detached(given: Any) -> Any:
    """Arguments whose tensors pass no gradient back."""
    if isinstance(given, Mapping):
        return {name: _detached(value) for name, value in given.items()}
    if isinstance(given, (tuple, list)):
        return [_detached(value) for value in given]
    return given.detach() if isinstance(given, Tensor) else given


class AttentionShell(Shell, nn.Module):
    """Takes the place of a self-attention whose student is a feature mixer.

    Args:
        teacher: The base's attention itself, frozen, no copy.
        student: What will replace it.
    """

    def __init__(self, teacher: nn.Module, student: StudentAttention) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student

    @property
    def mixer(self) -> Any:
        """The student's mixer."""
        return self.student.mixer

    @property
    def attention(self) -> Any:
        """The teacher."""
        return self.teacher

    def as_teacher(self) -> Any:
        """The teacher."""
        return self.teacher

    def as_student(self) -> Any:
        """The student."""
        return self.student

    def teacher_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the teacher makes of (B, N, C)."""
        output: Tensor = self.teacher(hidden_states, *args, **kwargs)
        return output

    def student_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the student makes of (B, N, C)."""
        output: Tensor = self.student(hidden_states, *args, **kwargs)
        return output

    def trained_units(self) -> Iterable[nn.Module]:
        """The student."""
        return [self.student]
