"""The error of a site: in half precision the bits of the plain formula, with fewer calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.launches import Calls
from blocks.ops import squares
from blocks.ops.optional import why_missing
from blocks.ops.triton_here import Machine
from sparsight.diffusion.surgery.site_error import mean_squares

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_difference_alone_is_kept_for_the_gradient(dtype: torch.dtype) -> None:
    """A model has as many of them as sites, at once."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    student, teacher = torch.randn(2, 64, 32).to(dtype).requires_grad_(), torch.randn(2, 64, 32).to(dtype)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        mean_squares(student, teacher)
    assert sum(kept.values()) == 4 * student.numel()


def test_half_precision_takes_seven_calls() -> None:
    student, teacher = torch.randn(2, 4, 3).bfloat16().requires_grad_(), torch.randn(2, 4, 3).bfloat16()
    with Calls() as calls:
        error, _ = mean_squares(student, teacher)
        torch.autograd.grad(error, student, torch.ones(()))
    assert calls.names.total() <= 8  # the seed of the gradient among them


FUSED = pytest.mark.skipif(bool(why_missing("triton")), reason="Triton is not installed")


@FUSED
@pytest.mark.parametrize("shape", [(2, 16, 8), (3, 7, 5), (1, 400, 24)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_give_what_the_plain_formula_gives_in_float64(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squares, "PROGRAMS", 3)  # so that a program of the largest takes several turns
    compare_with_float64(shape, dtype)


@FUSED
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_compare_a_layer_of_a_large_model(dtype: torch.dtype) -> None:
    compare_with_float64((2, 4096, 640), dtype)


def compare_with_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(shape).to(DEVICE, dtype) for _ in range(2))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    with Calls() as calls:
        found = mean_squares(ours, teacher, fused=True)
    assert not {"sub", "pow", "mean"} & {*calls.names}, "torch computes it"
    wanted = (theirs - teacher.double()).square().mean(), teacher.double().square().mean()
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32 and mine.item() == pytest.approx(other.item(), rel=1e-6)
    for error, power in (found, wanted):
        (0.37 * error / power).backward()
    assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-9)


@FUSED
def test_kernels_take_parts_of_tensors_and_leave_the_teacher_alone() -> None:
    whole, teacher = torch.randn(2, 9, 6, device=DEVICE), torch.randn(2, 9, 6, device=DEVICE).requires_grad_()
    ours, theirs = whole.clone().requires_grad_(), whole.clone().requires_grad_()
    for student, fused in ((ours, True), (theirs, False)):
        error, power = mean_squares(student[:, 2:], teacher[:, 2:], fused=fused)
        (error / power.clamp_min(1e-12)).backward()
        assert not power.requires_grad
    assert teacher.grad is None and ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("machine", "wanted", "said"),
    [
        (Machine("no module named triton", False), torch.zeros(2, 3), "no module named triton"),
        (Machine("", False), torch.zeros(2, 3), "a kernel runs on a CUDA device, not on cpu"),
        (
            Machine("", True),
            torch.zeros(2, 3).bfloat16(),
            "no kernel compares torch.float32 on cpu with torch.bfloat16",
        ),
        (Machine("", True), torch.zeros(2, 3), ""),
    ],
)
def test_what_no_kernel_compares_is_said(machine: Machine, wanted: Tensor, said: str) -> None:
    reason = squares.why_not(torch.zeros(2, 3), wanted, machine)
    assert reason.startswith(said) and bool(reason) == bool(said)
