"""The error of a site: in half precision the bits of the plain formula, with fewer calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.launches import Calls
from sparsight.diffusion.surgery.site_error import mean_squares


def plainly(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean(), teacher.square().mean()


@pytest.mark.parametrize("shape", [(2, 16, 8), (3, 7, 5), (1, 1024, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_and_gradients_are_those_of_the_plain_formula(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(shape).to(dtype) for _ in range(2))
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    found, wanted = mean_squares(ours, teacher), plainly(theirs, teacher)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, other)
    for error, power in (found, wanted):
        (0.37 * error / power).backward()
    assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == dtype
    assert torch.equal(ours.grad, theirs.grad) and ours.grad.any()


def test_teacher_and_frozen_students_get_no_gradient() -> None:
    student, teacher = torch.randn(2, 4, 3).bfloat16(), torch.randn(2, 4, 3).bfloat16().requires_grad_()
    error, power = mean_squares(student.requires_grad_(), teacher)
    (error / power).backward()
    assert teacher.grad is None and not power.requires_grad
    assert not mean_squares(student.detach(), teacher)[0].requires_grad


def test_half_precision_takes_seven_calls() -> None:
    student, teacher = torch.randn(2, 4, 3).bfloat16().requires_grad_(), torch.randn(2, 4, 3).bfloat16()
    with Calls() as calls:
        error, _ = mean_squares(student, teacher)
        torch.autograd.grad(error, student, torch.ones(()))
    assert calls.names.total() <= 8  # the seed of the gradient among them
