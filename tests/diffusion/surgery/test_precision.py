"""Students whose weights are stored in another precision than the one they work in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import DeltaConvBlock, Grid, LinearAttention, NeighborhoodAttention, NoMixing, SoftmaxAttention
from blocks.base import Site, TokenMixer
from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.core_site import CoreSite
from sparsight.diffusion.surgery.replace import finalize, put, replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import students
from sparsight.diffusion.surgery.student import StudentAttention
from tests import tiny

GRID = Grid(4, 4)
MIXERS: dict[str, Callable[[Site], TokenMixer]] = {
    "delta_conv": partial(DeltaConvBlock, kernel_size=3),
    "linear": LinearAttention,  # its branches have norms
    "no_mixing": NoMixing,
    "neighborhood": partial(NeighborhoodAttention, kernel_size=3),
    "softmax": SoftmaxAttention,
}


class Stored(nn.Module):
    """A linear layer whose weight is stored as codes of 8 bits, and is made when it is used.

    Args:
        linear: The layer.
        dtype: int8, or uint8 with an offset.
        parameter: Whether the codes are a parameter, as bitsandbytes keeps them, or a buffer.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, parameter: bool) -> None:
        super().__init__()
        self.offset = 128 if dtype == torch.uint8 else 0
        self.scale = float(linear.weight.detach().abs().max()) / 127
        codes = (linear.weight.detach() / self.scale).round() + self.offset
        if parameter:
            self.codes = nn.Parameter(codes.to(dtype), requires_grad=False)
        else:
            self.register_buffer("codes", codes.to(dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_floating_point()
        weight = (self.codes.to(x.dtype) - self.offset) * self.scale
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def student(mixer: Callable[[Site], TokenMixer], *, shells: bool = False) -> Any:
    torch.manual_seed(0)
    denoiser = tiny.dit().eval()
    made = replace(denoiser, mixer)
    for shell in made.values():
        for parameter in shell.mixer.parameters():
            nn.init.normal_(parameter, std=0.3)
    if shells:
        set_mode(made.values(), Mode.STUDENT)
    else:
        finalize(denoiser)
    return denoiser


@torch.no_grad()
def answer(denoiser: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    inputs = example_inputs(denoiser, batch=2)
    inputs["hidden_states"] = inputs["hidden_states"].to(dtype)
    return denoiser(**inputs, return_dict=False)[0]


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("parameter", [True, False], ids=["parameter", "buffer"])
@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("shells", [True, False], ids=["shell", "student"])
def test_weights_stored_as_codes_answer_alike(name: str, dtype: torch.dtype, parameter: bool, shells: bool) -> None:
    denoiser = student(MIXERS[name], shells=shells)
    wanted = answer(denoiser)
    sites = [m for m in denoiser.modules() if isinstance(m, (StudentAttention, CoreSite))]
    for site in sites:
        for path, linear in [(p, m) for p, m in site.named_modules() if isinstance(m, nn.Linear)]:
            put(site, path, Stored(linear, dtype, parameter=parameter))
    assert error(answer(denoiser), wanted) < 0.05
    half = denoiser.to(torch.bfloat16)  # codes stay, what is beside them follows
    assert answer(half, torch.bfloat16).dtype == torch.bfloat16
    assert error(answer(half, torch.bfloat16), wanted) < 0.1


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("kind", ["shell", "student", "export"])
def test_layerwise_casting_stores_weights_in_8_bits(name: str, kind: str, tmp_path: Path) -> None:
    denoiser = student(MIXERS[name], shells=kind == "shell")
    if kind == "export":
        denoiser = standalone(denoiser, tmp_path)
    denoiser = denoiser.to(torch.bfloat16).eval()
    wanted = answer(denoiser, torch.bfloat16)
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    if name == "delta_conv":
        mixer = next(module for module in denoiser.modules() if type(module).__name__ == "DeltaConvBlock")
        assert mixer.entry.weight.element_size() == 1
    found = answer(denoiser, torch.bfloat16)
    assert found.dtype == torch.bfloat16 and error(found, wanted) < 0.15


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_input_rules(name: str, dtype: torch.dtype) -> None:
    denoiser = student(MIXERS[name])
    wanted = answer(denoiser)
    for site in students(denoiser).values():
        seen: list[torch.dtype] = []
        site.mixer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].dtype))
    found = answer(denoiser.to(dtype), dtype)
    assert found.dtype == dtype and error(found, wanted) < 0.05
    assert set(seen) <= {dtype}


def test_mixers_and_projections_that_are_trained_keep_float32_in_a_frozen_half() -> None:
    for mixer in (SoftmaxAttention, LinearAttention):
        denoiser = tiny.dit().to(torch.bfloat16)
        shells = replace(denoiser, mixer, train_projections=True)
        site: Any = shells["transformer_blocks.0.attn1"].as_student()
        site.grid = GRID
        trained = [p for p in site.parameters() if p.requires_grad]
        assert trained and all(p.dtype == torch.float32 for p in trained)
        hidden = torch.randn(2, GRID.tokens, 16).to(torch.bfloat16)
        found = site(hidden)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, site.float()(hidden.float()).to(torch.bfloat16))
        found.float().square().sum().backward()
        assert all(p.grad is not None for p in trained)
