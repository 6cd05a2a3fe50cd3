"""The delta convolution in few calls gives what its layers one by one give, and leaves to them what it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from blocks import DeltaConvBlock, Grid, Site
from blocks.ops.delta_conv.form import Layers, as_image, as_tokens
from blocks.ops.delta_conv.torch import weights_for
from sparsight.testing import relative_l2

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper_pixart", "kernel_size": 9},
    "released": {"preset": "released_sdxl", "kernel_size": 13},
    "one_stage": {"scales": [1], "kernel_size": 3, "gate": "divide", "pool_branch": False, "depthwise_bias": False},
    "summed": {"scales": [1, 1 / 3, 1 / 2], "merge": "sum", "gate": "multiply", "kernel_size": 5},
}
GRIDS = [Grid(8, 12), Grid(7, 5), Grid(1, 6), Grid(1, 1)]


def block(**options: Any) -> DeltaConvBlock:
    """A block with weights that are far from those of another one."""
    torch.manual_seed(0)
    return DeltaConvBlock(Site("up_blocks.1.attn1", channels=16, heads=2, head_dim=8, grid=Grid(8, 8)), **options)


def layers(mixer: DeltaConvBlock) -> Layers:
    return Layers(mixer.entry, mixer.depthwise, mixer.exit, mixer.pool)


def gradients(
    call: Callable[[Tensor, Grid], Tensor], mixer: DeltaConvBlock, hidden: Tensor, grid: Grid
) -> list[Tensor]:
    """The output, and the gradients of its product with a fixed tensor for the input and all weights."""
    hidden = hidden.clone().requires_grad_()
    output = call(hidden, grid)
    upstream = torch.linspace(-1, 2, output.numel()).view_as(output).to(output)
    return [output, *torch.autograd.grad(output, [hidden, *mixer.parameters()], upstream)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_layers_one_by_one_with_all_gradients(dtype: torch.dtype, variant: str, grid: Grid) -> None:
    mixer = block(**VARIANTS[variant]).to(dtype)
    for batch in (1, 3):
        hidden = torch.randn(batch, grid.tokens, 16, dtype=dtype)
        assert weights_for(hidden, layers(mixer)) is not None  # it is the form that is tried
        found, wanted = (gradients(call, mixer, hidden, grid) for call in (mixer, mixer.reference))
        for one, other in zip(found, wanted, strict=True):
            scale = other.abs().max().clamp(min=1e-3)
            assert (one - other).abs().max() <= (1e-12 if dtype == torch.float64 else 2e-5) * scale


@pytest.mark.parametrize("grid", GRIDS[:2], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_is_as_close_to_float64_in_bfloat16_as_the_layers_one_by_one(cast: str, variant: str, grid: Grid) -> None:
    mixer = block(**VARIANTS[variant])
    hidden = torch.randn(2, grid.tokens, 16).bfloat16()
    exact = gradients(mixer.double().reference, mixer, hidden.double(), grid)
    mixer = mixer.to(torch.bfloat16 if cast == "weights" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        found = gradients(mixer, mixer, hidden, grid)
        wanted = gradients(mixer.reference, mixer, hidden, grid)
    assert [one.dtype for one in found] == [other.dtype for other in wanted]
    for one, other, truth in zip(found, wanted, exact, strict=True):
        assert relative_l2(one, truth) < max(2 * relative_l2(other, truth), 2e-2)


def test_gradients_of_gradients_pass_through_the_cast() -> None:
    mixer, hidden = block(), torch.randn(2, 24, 16)
    with torch.autocast("cpu", torch.bfloat16):
        penalties = []
        for call in (mixer, mixer.reference):
            first = torch.autograd.grad(call(hidden, Grid(4, 6)).pow(2).sum(), mixer.entry.weight, create_graph=True)
            penalties.append(torch.autograd.grad(first[0].pow(2).sum(), mixer.exit.weight)[0])
    assert relative_l2(*penalties) < 5e-2


def test_one_image_is_channels_last_too() -> None:
    image = as_image(torch.randn(1, 35, 6), Grid(5, 7))
    assert nn.functional.avg_pool2d(image, 2).is_contiguous(memory_format=torch.channels_last)
    assert nn.functional.conv2d(image, torch.ones(6, 1, 3, 3), groups=6).stride()[1] == 1
    assert as_tokens(image).data_ptr() == image.data_ptr()


def _hooked(mixer: DeltaConvBlock) -> None:
    mixer.exit.register_forward_hook(lambda module, args, output: 2 * output)


def _entering(mixer: DeltaConvBlock) -> None:
    mixer.entry.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def _patched(mixer: DeltaConvBlock) -> None:
    plain = mixer.entry.forward
    mixer.entry.forward = lambda x: 2 * plain(x)  # type: ignore[assignment, method-assign]


def _parametrized(mixer: DeltaConvBlock) -> None:
    parametrizations.weight_norm(mixer.depthwise[0])


def _pruned(mixer: DeltaConvBlock) -> None:
    prune.l1_unstructured(mixer.depthwise[1], "weight", 0.5)


def _wrapped(mixer: DeltaConvBlock) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    mixer.pool = Doubled(16, 16)


@pytest.mark.parametrize("change", [_hooked, _entering, _patched, _parametrized, _pruned, _wrapped])
def test_what_was_put_into_a_layer_counts(change: Callable[[DeltaConvBlock], None]) -> None:
    mixer, hidden = block(), torch.randn(1, 24, 16)
    before = mixer(hidden, Grid(4, 6))
    change(mixer)
    after = mixer(hidden, Grid(4, 6))
    assert torch.equal(after, mixer.reference(hidden, Grid(4, 6)))
    assert change is _parametrized or not torch.allclose(after, before)
    assert weights_for(hidden, layers(mixer)) is None


@pytest.mark.parametrize("autocast", [False, True])
def test_float16_is_left_to_the_form_that_stays_in_its_range(autocast: bool) -> None:
    mixer, hidden = block(), torch.randn(1, 24, 16)
    if not autocast:
        mixer, hidden = mixer.half(), hidden.half()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        assert weights_for(hidden, layers(mixer)) is None
        assert torch.equal(mixer(hidden, Grid(4, 6)), mixer.reference(hidden, Grid(4, 6)))


def test_weights_of_another_precision_are_refused_as_before() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        block()(torch.randn(1, 24, 16).bfloat16(), Grid(4, 6))
