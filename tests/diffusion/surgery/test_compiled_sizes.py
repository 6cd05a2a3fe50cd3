"""Students compiled block by block serve as many sizes as the base does, with hardly more graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from blocks import DeltaConvBlock, LinearAttention, NeighborhoodAttention
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.replace import finalize, replace
from tests import tiny
from tests.tiny_rows import few

SIZES = ((32, 32), (16, 48), (48, 16), (24, 40), (40, 24), (20, 28))


@torch.no_grad()
def graphs(denoiser: Any, sizes: tuple[tuple[int, int], ...] = SIZES) -> int:
    """Compile the repeated blocks, run at all sizes, and count the graphs."""
    counted: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        counted.append(graph)
        return graph.forward

    torch._dynamo.reset()
    eager = [denoiser(**inputs, return_dict=False)[0] for inputs in _inputs(denoiser, sizes)]
    for block in denoiser.modules():
        if isinstance(block, BasicTransformerBlock):
            block.compile(fullgraph=True, backend=backend)
    for inputs, expected in zip(_inputs(denoiser, sizes), eager, strict=True):
        torch.testing.assert_close(denoiser(**inputs, return_dict=False)[0], expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    return len(counted)


def _inputs(denoiser: Any, sizes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    return [example_inputs(denoiser, batch=2, size=size) for size in sizes]


MIXERS = (DeltaConvBlock, LinearAttention, NeighborhoodAttention)


@pytest.mark.parametrize(
    ("mixer", "made"), few(itertools.product(MIXERS, [tiny.unet, tiny.pixart]), (LinearAttention, tiny.unet))
)
def test_one_graph_more_than_the_base_at_most(mixer: Any, made: Callable[[], Any]) -> None:
    base = graphs(made().eval())
    student = made().eval()
    replace(student, mixer)
    finalize(student)
    assert graphs(student) <= base + 1
