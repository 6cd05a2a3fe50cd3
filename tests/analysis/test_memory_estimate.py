"""The memory estimate: against what a real step keeps, and on published networks at their real size."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from blocks import DeltaConvBlock, NeighborhoodAttention
from sparsight.analysis.memory_estimate import estimate_memory, saved_bytes
from sparsight.analysis.memory_table import GIB, MemoryEstimate
from sparsight.diffusion.examples import example_inputs
from sparsight.diffusion.process import NoiseProcess
from sparsight.diffusion.published import published
from sparsight.distill.distiller import Distiller
from sparsight.distill.stages import Objective
from sparsight.surgery.replace import replace
from tests import tiny

TOLERANCE = 0.05  # the estimate has a simpler loss, and counts every input of a checkpointed block


def distiller(denoiser: Any, **options: Any) -> Distiller:
    from diffusers import DDPMScheduler

    shells = replace(denoiser, partial(DeltaConvBlock, kernel_size=3), **options)
    return Distiller(denoiser, shells, dict.fromkeys(shells, 1.0), NoiseProcess(DDPMScheduler()))


def noised(denoiser: Any, batch: int) -> dict[str, Any]:
    inputs = example_inputs(denoiser, batch=batch)
    sample = inputs.pop("sample" if "sample" in inputs else "hidden_states")
    return {"xt": sample, "timestep": inputs.pop("timestep"), "cond": inputs, "level": torch.full((batch,), 500)}


def really_kept(made: Distiller, objective: str, batch: int) -> int:
    """Bytes of distinct storages that a real forward pass and loss keep, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in made.denoiser.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    step = noised(made.denoiser, batch)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        terms = made.layerwise(step) if objective == "layerwise" else made.end_to_end(step, Objective())
    sum(terms.values()).backward()  # type: ignore[union-attr]
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("objective", ["layerwise", "end_to_end"])
@pytest.mark.parametrize("family", ["unet", "sdxl", "pixart"])
def test_as_much_is_estimated_as_a_real_step_keeps(family: str, objective: str, checkpointing: bool) -> None:
    denoiser = tiny.FAMILIES[family]()
    made = distiller(denoiser)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    estimated = saved_bytes(denoiser, objective, batch=3)
    assert estimated.kept == pytest.approx(really_kept(made, objective, 3), rel=TOLERANCE)
    assert (estimated.recomputed > 0) == (checkpointing and objective == "end_to_end")


def test_estimating_leaves_no_trace() -> None:
    denoiser = tiny.unet()
    made = distiller(denoiser)
    denoiser.enable_gradient_checkpointing()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    inputs = example_inputs(denoiser)
    answer, random = denoiser(**inputs).sample, torch.get_rng_state()
    estimate_memory(denoiser, objectives=["layerwise", "end_to_end"], batch=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(denoiser(**inputs).sample, answer)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(shell.squares is None for shell in made.shells.values())
    really_kept(made, "end_to_end", 1)  # gradient checkpointing is the real one again
    assert all(p.grad is not None for p in denoiser.parameters() if p.requires_grad)


def test_the_parts_that_stand() -> None:
    denoiser = tiny.pixart()
    denoiser.to(torch.bfloat16)
    replace(denoiser, partial(NeighborhoodAttention, kernel_size=3), train_projections=True)
    trained = sum(4 * p.numel() for p in denoiser.parameters() if p.requires_grad)
    text = nn.Linear(10, 10)
    options: dict[str, Any] = {"objectives": ["layerwise"], "batch": 1, "others": {"text_encoder": text}}
    adam = estimate_memory(denoiser, averaged=True, **options).standing
    assert adam["text_encoder"] == 440
    assert adam["their gradients"] == adam["mixers and what else is trained"] > 0
    assert adam["optimiser state"] == pytest.approx(2 * adam["their gradients"], rel=1e-3)
    assert adam["moving average, and raw weights while it is in use"] == 2 * adam["their gradients"]
    assert 0 < adam["frozen denoiser, bfloat16"] < 2 * sum(p.numel() for p in denoiser.parameters())
    assert trained >= adam["their gradients"]
    plain = estimate_memory(denoiser, optimizer=torch.optim.SGD, **options).standing
    assert plain["optimiser state"] == plain["moving average, and raw weights while it is in use"] == 0


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing() -> None:
    denoiser = tiny.sdxl_unet()
    distiller(denoiser)
    one, four = (estimate_memory(denoiser, objectives=["end_to_end"], batch=batch) for batch in (1, 4))
    assert four.stages["activations, batch 4, end_to_end"] == 4 * one.stages["activations, batch 1, end_to_end"]
    denoiser.enable_gradient_checkpointing()
    assert estimate_memory(denoiser, objectives=["end_to_end"], batch=1).total < one.total


def test_a_device_that_is_too_small_is_reported_with_the_remedy() -> None:
    words = ("dust", "sweep")
    fits = MemoryEstimate({"frozen": GIB}, *words, {"layerwise": GIB, "end_to_end": 3 * GIB}, available=5 * GIB)
    assert fits.total == 4 * GIB and not fits.too_much
    assert "free on the device" in fits.text() and "end_to_end" in fits.text() and "Not counted: dust." in fits.text()
    assert "GiB" in fits.text() and "MiB" in MemoryEstimate({"frozen": 5}, *words).text()
    small = MemoryEstimate(fits.standing, *words, fits.stages, available=3 * GIB)
    assert "4.0 GiB" in small.too_much and "sweep" in small.too_much and "3.0 GiB" in small.too_much


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma"])
def test_published_networks_are_estimated_in_seconds(name: str) -> None:
    with torch.device("meta"):
        denoiser = published(name).to(torch.bfloat16)
        denoiser.enable_gradient_checkpointing()
        replace(denoiser, DeltaConvBlock)
    start = time.process_time()
    estimate = estimate_memory(
        denoiser,
        objectives=["layerwise", "end_to_end"],
        batch=2,
        averaged=True,
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
        device=torch.device("cpu"),
    )
    assert time.process_time() - start < 30
    assert estimate.total < 20 * GIB  # without text encoders and VAE; batches of the recipes for 24 GB
    assert min(estimate.stages.values()) > 0.1 * GIB
