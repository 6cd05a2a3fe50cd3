"""How far a student's output at a site is from its teacher's.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

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

    Both tensors have one shape, e.g. (B, N, C); computed in fp32.
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean(), teacher.square().mean()


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's mean square: 1 means "as bad as zero"; its square root is the relative L2."""
    error, power = mean_squares(student, teacher)
    return error / power.clamp_min(TINY)
