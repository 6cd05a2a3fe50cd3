"""Sampling with fixed noise: images for metrics and grids, and the states that a teacher passes on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.common.errors import need_numbers, need_whole, require
from sparsight.diffusion.families.conditioning import concatenate_conditions
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.model.randomness import Stream, sample_normal
from sparsight.diffusion.pipelines.schedulers import is_flow_matching, is_multistep_flow


@dataclass(frozen=True)
class Sampling:
    """How a model's images are drawn.

    Args:
        steps: Sampler steps.
        guidance_scale: Guidance; of training as well where the denoiser takes it as an input (FLUX.1 [dev]).
        size: Height and width in model space, behind frames for video; what the denoiser was made for if not given.

    Raises:
        ValueError: Steps or guidance are out of range.
    """

    steps: int = 25
    guidance_scale: float = 2.0
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        need_whole(steps=self.steps)
        need_numbers(guidance_scale=self.guidance_scale)
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(math.isfinite(self.guidance_scale), "guidance_scale", self.guidance_scale, "a finite number")


def deterministic_sampler(scheduler: Any) -> Any:
    """A sampler without noise of its own for a training scheduler: DDIM, or Euler for flow matching.

    A solver of several steps that is set to flow matching stays what it is.

    DDIM (Song et al., arXiv 2010.02502) starts at the last training step (Lin et al., arXiv 2305.08891), unless nothing
    can be told there.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if is_multistep_flow(scheduler):
        kind, config = type(scheduler), scheduler.config
        plain = {"algorithm_type": "dpmsolver++"} if "sde" in (config.get("algorithm_type") or "") else {}
        return kind.from_config(config, **plain)
    if is_flow_matching(scheduler):
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    spacing = "leading" if NoiseProcess(scheduler).ends_blind else "trailing"
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing=spacing, clip_sample=False)


def starting_noise(shape: tuple[int, ...], *, seed: int, index: Tensor) -> Tensor:
    """Start of sampling for every sample id, (B, C, H, W): equal seeds and ids give equal images."""
    return sample_normal(shape, seed=seed, step=0, index=index, stream=Stream.START)


def check_steps(model: DiffusionModel, steps: int, *, name: str) -> None:
    """Refuse more sampler steps than the model was trained with; flow matching is continuous, and takes any number.

    Args:
        model: Whose samples are drawn.
        steps: Of the sampler.
        name: Of the option, for the message.

    Raises:
        ConfigurationError: There are too many.
    """
    most = model.process.num_train_timesteps
    fits = steps <= most or model.process.prediction_type == "flow"
    require(fits, name, steps, f"1 to {most}, the steps of the model's noise scheduler")


def guided(output: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): (B, ...) of predictions (2 B, ...).

    Args:
        output: Predictions with the condition, then those of the same states without it.
        scale: 1 leaves the first.
    """
    with_condition, without = output.chunk(2)
    return without + scale * (with_condition - without)


@torch.no_grad()
def sample(
    model: DiffusionModel,
    batch: Mapping[str, Any],
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    on_state: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Sample in model space.

    Args:
        model: Pipeline parts.
        batch: Labels, captions or their embeddings (``cond`` and ``uncond``), one for every sample.
        noise: Start (B, C, H, W).
        steps: Sampler steps.
        guidance: Guidance scale; 1 is none and costs one denoiser call a step instead of two. Where it is an input of
            the denoiser, it is handed over, and costs nothing.
        on_state: Called with every ``(x_t, timestep)`` that the denoiser is asked about.

    Returns:
        Clean samples (B, C, H, W), float32.
    """
    sampler = deterministic_sampler(model.pipeline.scheduler)
    check_steps(model, steps, name="steps")
    state = noise.to(model.device)
    sampler.set_timesteps(**model.timetable(sampler, steps, state.shape[2:]), device=model.device)
    size = (state.shape[-2] * model.pixels_per_cell, state.shape[-1] * model.pixels_per_cell)
    cond = model.with_guidance(model.condition(batch, size), guidance)
    twice = guidance != 1.0 and not model.takes_guidance
    if twice:
        cond = concatenate_conditions(cond, model.unconditional(batch, len(state), size))
    for timestep in sampler.timesteps:
        if on_state is not None:
            on_state(state, timestep)
        inputs = torch.cat([state, state]) if twice else state
        output = predict(model.denoiser, inputs, timestep.expand(len(inputs)), cond)
        if twice:
            output = guided(output, guidance)
        state = sampler.step(output, timestep, state).prev_sample
    return state
