"""Students compiled block by block serve as many sizes as the base does, with hardly more graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch._inductor.compile_fx import compile_fx

from blocks import (
    DeltaConvBlock,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    NoMixing,
    PooledAttention,
    SoftmaxAttention,
    TileAttention,
)
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.replace import finalize, replace
from tests import tiny
from tests.tiny_rows import few

SIZES = ((32, 32), (16, 48), (48, 16), (24, 40), (40, 24), (20, 28))


@torch.no_grad()
def graphs(denoiser: Any, sizes: tuple[tuple[int, int], ...] = SIZES, *, to: Callable[..., Any] | None = None) -> int:
    """Compile the repeated blocks, run at all sizes, and count the graphs.

    Args:
        denoiser: In eval mode.
        sizes: Height and width in model space.
        to: What makes code of a graph; the graph runs as it is if not given.
    """
    counted: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        counted.append(graph)
        return graph.forward if to is None else to(graph, inputs)

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


def student_of(made: Callable[[], Any], mixer: Any) -> Any:
    student = made().eval()
    torch.manual_seed(1)
    replace(student, mixer)
    finalize(student)
    return student


# a tile covers no axis of any of these grids: whether one does is a graph of its own
TILES = [partial(TileAttention, tile=3), partial(PooledAttention, tile=3, without_own=True)]
MERGED = partial(Merge, parts=TILES)
MIXERS: dict[str, Any] = {
    "delta_conv": DeltaConvBlock,
    "linear": LinearAttention,
    "window": NeighborhoodAttention,
    "merge": MERGED,
    "no_mixing": NoMixing,
    "softmax": SoftmaxAttention,
    "tile": TILES[0],
    "pooled": partial(PooledAttention, tile=3),
    "head_split": partial(HeadSplit, parts=[MERGED, partial(NeighborhoodAttention, kernel_size=3)]),
}


@pytest.mark.parametrize(
    ("mixer", "made"), few(itertools.product(MIXERS, [tiny.unet, tiny.pixart]), ("pooled", tiny.pixart))
)
def test_one_graph_more_than_the_base_at_most(mixer: str, made: Callable[[], Any]) -> None:
    assert graphs(student_of(made, MIXERS[mixer])) <= graphs(made().eval()) + 1


@pytest.mark.slow
def test_compiled_to_machine_code_it_is_one_graph_more_too() -> None:
    student = graphs(student_of(tiny.pixart, NeighborhoodAttention), to=compile_fx)
    assert student <= graphs(tiny.pixart().eval(), to=compile_fx) + 1
