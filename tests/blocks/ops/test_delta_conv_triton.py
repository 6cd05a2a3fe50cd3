"""The Triton kernels of the delta convolution against its layers in float64; without a GPU, in Triton's interpreter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from blocks import DeltaConvBlock, Grid, Site
from blocks.base import _warn_once
from sparsight.testing import relative_l2
from tests.tiny_rows import few

pytest.importorskip("triton", reason="Triton, which has no wheel for this platform, is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {"scales": [1], "kernel_size": 3, "gate": "divide", "pool_branch": False, "depthwise_bias": False}
SUMMED = {"scales": [1, 1 / 3, 1 / 2], "merge": "sum", "gate": "multiply", "kernel_size": 5}
SMALL = {"kernel_size": 3, "entry_width": 2}
ROWS: dict[str, tuple[dict[str, Any], Grid, torch.dtype]] = {
    "plain": (PLAIN, Grid(3, 5), torch.float32),
    "halves_and_quarters": ({"kernel_size": 3}, Grid(4, 8), torch.float32),
    "halves_in_half": (SMALL, Grid(4, 8), torch.float16),
    "windows_overlap": ({**SMALL, "scales": [1 / 2, 0.3]}, Grid(7, 5), torch.float32),
    "summed": (SUMMED, Grid(6, 9), torch.float32),
    "summed_in_half": (SUMMED, Grid(6, 9), torch.float16),
    "default": ({}, Grid(8, 12), torch.float32),
    "default_beyond_a_tile": ({}, Grid(20, 37), torch.float32),
    "paper": ({"preset": "paper_pixart", "kernel_size": 9}, Grid(19, 17), torch.float32),
    "paper_in_half": ({"preset": "paper_sd15"}, Grid(16, 16), torch.float16),
    "released": ({"preset": "released_sdxl", "kernel_size": 13}, Grid(18, 10), torch.float32),
    "released_in_half": ({"preset": "released_sdxl", "kernel_size": 11}, Grid(5, 33), torch.float16),
    "one_token": ({}, Grid(1, 1), torch.float32),
    "one_row": ({}, Grid(1, 40), torch.float32),
    "one_column": ({"kernel_size": 5}, Grid(34, 1), torch.float16),
    "four_stages": ({"scales": [1, 1 / 2, 1 / 4, 1 / 8], "kernel_size": 5}, Grid(16, 32), torch.float32),
    "twice_the_whole": ({"scales": [1, 1], "kernel_size": 3, "depthwise_bias": False}, Grid(6, 6), torch.float32),
    "wide_kernel": ({"kernel_size": 19, "scales": [1], "entry_width": 2}, Grid(6, 9), torch.float32),
}
QUICK = ("plain", "halves_in_half", "windows_overlap")


def block(channels: int = 8, **options: Any) -> DeltaConvBlock:
    torch.manual_seed(0)
    site = Site("up_blocks.1.attn1", channels=channels, heads=2, head_dim=channels // 2, grid=Grid(8, 8))
    return DeltaConvBlock(site, backend="triton", **options).to(DEVICE)


def images(grid: Grid, dtype: torch.dtype, batch: int = 2, channels: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, grid.tokens, channels, generator=generator).to(DEVICE, dtype)


def everything(call: Any, mixer: nn.Module, hidden: Tensor, grid: Grid) -> Iterator[tuple[str, Tensor]]:
    """The output, and the gradients of its product with a fixed tensor, by name."""
    hidden = hidden.clone().requires_grad_()
    output = call(hidden, grid)
    upstream = torch.linspace(-1, 2, output.numel(), device=DEVICE).view_as(output).to(output)
    names = ["output", "hidden", *(name for name, _ in mixer.named_parameters())]
    yield from zip(names, [output, *torch.autograd.grad(output, [hidden, *mixer.parameters()], upstream)], strict=True)


def compare(mixer: DeltaConvBlock, hidden: Tensor, grid: Grid, tolerance: float) -> None:
    assert mixer.serving_backend(grid, hidden) == "triton"
    exact = copy.deepcopy(mixer).double()
    found, wanted = everything(mixer, mixer, hidden, grid), everything(exact.reference, exact, hidden.double(), grid)
    for (name, one), (_, other) in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= tolerance * other.norm().clamp(min=1e-3), name


@pytest.mark.parametrize("row", few(ROWS, *QUICK))
def test_equals_the_layers_in_float64_with_all_gradients(row: str) -> None:
    options, grid, dtype = ROWS[row]
    mixer = block(**options).to(dtype)
    compare(mixer, images(grid, dtype), grid, 1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.slow
def test_channels_beyond_a_program_are_all_there() -> None:
    mixer = block(144, kernel_size=3, scales=[1, 1 / 2])
    compare(mixer, images(Grid(4, 4), torch.float32, 1, 144), Grid(4, 4), 1e-5)


def test_gradients_summed_over_splits_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from blocks.ops.delta_conv import triton_plan

    monkeypatch.setattr(triton_plan, "TOKENS_A_SPLIT", 8)
    mixer, grid = block(**{**PLAIN, "pool_branch": True, "depthwise_bias": True, "entry_width": 2}), Grid(4, 5)
    hidden = images(grid, torch.float32)
    first, again = (dict(everything(mixer, mixer, hidden, grid)) for _ in range(2))
    wanted = dict(everything(mixer.reference, mixer, hidden, grid))
    assert all(relative_l2(first[name], wanted[name]) < 1e-5 for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_under_autocast_weights_and_their_gradients_stay_in_float32() -> None:
    mixer, grid = block(**SMALL, scales=[1]), Grid(4, 4)
    hidden = images(grid, torch.float16)
    with torch.autocast(DEVICE, torch.float16):
        found = dict(everything(mixer, mixer, hidden, grid))
    wanted = dict(everything(mixer.reference, mixer, hidden.float(), grid))
    assert all(relative_l2(found[name], wanted[name]) < 5e-3 for name in found)
    kinds = {name: each.dtype for name, each in found.items()}
    assert {kinds.pop("output"), kinds.pop("hidden")} == {torch.float16}
    assert {*kinds.values()} == {torch.float32}


def test_only_the_planes_of_the_entry_are_kept() -> None:
    mixer, grid, kept = block(**PLAIN), Grid(4, 4), []
    hidden = images(grid, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        mixer(hidden, grid)
    own = {id(parameter) for parameter in mixer.parameters()} | {id(hidden)}
    assert sum(each.numel() for each in kept if id(each) not in own) == 2 * mixer.entry_width * grid.tokens


def test_values_beyond_the_range_of_float16_are_held_and_gradients_are_not() -> None:
    mixer, grid = block(**{**PLAIN, "gate": "multiply"}).half(), Grid(2, 3)
    with torch.no_grad():
        mixer.exit.weight.fill_(100)
    hidden = (300 * images(grid, torch.float16).sign()).requires_grad_()
    output = mixer(hidden, grid)
    assert output.isfinite().all() and output.abs().max() == 65504
    (gradient,) = torch.autograd.grad(output, hidden, torch.full_like(output, 60000))
    assert not gradient.isfinite().all()  # so that a scaler of losses sees it


def test_compiled_code_has_one_node_for_it() -> None:
    mixer, grid = block(**PLAIN), Grid(3, 4)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, fullgraph=True, backend=counter)
    hidden = images(grid, torch.float32)
    torch.testing.assert_close(compiled(hidden, grid), mixer(hidden, grid))
    calls = [str(node.target) for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("delta_conv" in call for call in calls) == 1 and not any("conv2d" in call for call in calls)


@pytest.mark.slow
def test_the_operation_is_what_torch_expects_of_one() -> None:
    from blocks.ops.delta_conv.triton import FORWARD

    mixer = block(**SMALL, scales=[1, 1 / 2])
    dense, stages = [mixer.entry, mixer.exit, mixer.pool], list(mixer.depthwise)
    weights = [[each.weight for each in dense], [each.bias for each in dense]]
    weights += [[each.weight for each in stages], [each.bias for each in stages]]
    hidden = images(Grid(4, 2), torch.float32).requires_grad_()
    torch.library.opcheck(FORWARD, (hidden, *weights, [1.0, 0.5], True, 1.0, True, 4, 2, torch.float32))


HOOKED = "a layer has hooks"


@pytest.mark.parametrize(
    ("reason", "dtype", "options"),
    [
        ("no kernel computes in torch.float64", torch.float64, {}),
        ("4 stages and sides of 49 at most, not 1 and 51", torch.float32, {"kernel_size": 51, "scales": [1]}),
        ("not 5 and 3", torch.float32, {"kernel_size": 3, "scales": [1, 0.8, 0.6, 0.4, 0.2]}),
        (HOOKED, torch.float32, {}),
    ],
)
def test_torch_steps_in_by_declared_rules_and_says_why_once(
    reason: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    _warn_once.cache_clear()
    mixer, hidden = block(**options).to(dtype), images(Grid(4, 4), dtype)
    if reason == HOOKED:
        mixer.exit.register_forward_hook(lambda module, args, output: 2 * output)
    assert reason in mixer.missing_backend("triton", Grid(4, 4), hidden)
    with pytest.warns(UserWarning, match=f"DeltaConvBlock is computed with torch, not with triton: .*{reason}") as seen:
        for _ in range(2):
            output = mixer(hidden, Grid(4, 4))
    assert len(seen) == 1
    assert relative_l2(output, mixer.reference(hidden, Grid(4, 4))) < 1e-5


@pytest.mark.skipif(DEVICE == "cuda", reason="is about machines without a GPU")
def test_bfloat16_and_a_missing_interpreter_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, hidden = block().bfloat16(), images(Grid(4, 4), torch.bfloat16)
    assert "does not multiply bfloat16" in mixer.missing_backend("triton", Grid(4, 4), hidden)
    monkeypatch.delenv("TRITON_INTERPRET")
    mixer = block().bfloat16()
    assert "runs on a CUDA device, not on cpu" in mixer.missing_backend("triton", Grid(4, 4), hidden)
