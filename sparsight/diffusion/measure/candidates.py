"""The calls that a benchmark compares: a site's attention and its student, the untouched denoiser and the student.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import Grid
from sparsight.common.measure.latency import Call
from sparsight.diffusion.families.known import example_inputs, facts_of, family_of, plain_class
from sparsight.diffusion.surgery.replace import finalize, restore, shells_of
from sparsight.diffusion.surgery.sites import meta_twin
from sparsight.diffusion.surgery.student import OnGrid

PASSES = ("forward", "forward+backward")
BACKWARD = "Backward passes compute the gradients of all parameters, and at a site those of its input too."


def attention_like(denoiser: nn.Module, path: str) -> nn.Module:
    """An attention as the untouched denoiser has it at ``path``, with random weights."""
    attention = meta_twin(denoiser).get_submodule(path).to_empty(device="cpu")
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return attention


def ready(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of a module in eval mode on ``device``, all parameters trainable."""
    # diffusers' own `to` warns about dtypes even where there is nothing to warn of
    return nn.Module.to(copy.deepcopy(module), device, dtype).requires_grad_().eval()


def site_calls(module: nn.Module, shape: tuple[int, int], grid: Grid, **options: Any) -> dict[str, Call]:
    """Forward and forward+backward of an attention or a student on a random hidden state (B, N, C).

    ``shape`` is (B, C); ``options`` are the tensor's device and dtype. A token of text comes beside it where some does.
    """
    if isinstance(module, OnGrid):
        module.grid = grid
    hidden_BNC = torch.randn(shape[0], grid.tokens, shape[1], requires_grad=True, **options)
    facts = facts_of(module)
    width = None if facts is None else facts.text_channels
    text = [] if width is None else [torch.randn(shape[0], 1, width, **options)]

    def call() -> Tensor:
        output = module(hidden_BNC, *text)
        image: Tensor = output[0] if isinstance(output, tuple) else output
        return image

    return passes(call, (hidden_BNC, *module.parameters()))


def denoiser_calls(denoiser: nn.Module, size: tuple[int, ...], *, batch: int) -> dict[str, Call]:
    """Forward and forward+backward of a whole denoiser on random inputs; ``size`` is in model space."""
    like = next(denoiser.parameters())
    inputs = example_inputs(denoiser, batch=batch, size=size, device=like.device, dtype=like.dtype)
    return passes(lambda: denoiser(**inputs, return_dict=False)[0], tuple(denoiser.parameters()))


def passes(call: Callable[[], Tensor], sources: Iterable[Tensor]) -> dict[str, Call]:
    """Forward pass without gradients, and forward and backward pass with those of ``sources``."""
    sources = tuple(sources)

    def forward() -> None:
        with torch.no_grad():
            call()

    def both() -> None:
        output = call()
        torch.autograd.grad(output, sources, torch.ones_like(output), allow_unused=True)

    return dict(zip(PASSES, (forward, both), strict=True))


def teacher_and_student(denoiser: nn.Module) -> tuple[Any, Any]:
    """Copies of the untouched denoiser and of the student alone; where no teacher is left, it has random weights."""
    for shell in shells_of(denoiser).values():
        shell.output = None  # part of a graph after a training step: it cannot be copied
    student = copy.deepcopy(denoiser)
    finalize(student)
    if not shells_of(denoiser):
        return plain_class(denoiser).from_config(denoiser.config), student
    teacher = copy.deepcopy(denoiser)
    restore(teacher)
    return teacher, student


def grid_of(tokens: int) -> Grid:
    """The grid of so many tokens that is closest to a square."""
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return Grid(height, tokens // height)


def size_for(denoiser: Any, own_tokens: int, own_size: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Size in model space at which the largest site has about ``tokens`` tokens; the denoiser's own shape, scaled."""
    *kept, _, _ = own_size  # frames stay as many
    patch, factor = family_of(denoiser).patch(denoiser)[-2:], math.sqrt(tokens / own_tokens)
    sides = zip(own_size[-2:], patch, strict=True)
    return *kept, *(max(1, round(side * factor / step)) * step for side, step in sides)
