"""Kinds of noise schedulers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_flow_matching(scheduler: Any) -> bool:
    """Whether denoisers of a scheduler predict the flow from noise to image."""
    return is_multistep_flow(scheduler) or _is_flow_class(scheduler)


def is_multistep_flow(scheduler: Any) -> bool:
    """Whether it is a solver of other models, such as UniPC, that is set to flow matching."""
    config = scheduler.config
    return bool(config.get("use_flow_sigmas")) and config.get("prediction_type") == "flow_prediction"


def flow_sigmas(scheduler: Any) -> Tensor:
    """Noise levels that a flow-matching scheduler trains at, ascending, float32 (T,)."""
    steps: int = scheduler.config.num_train_timesteps
    if is_multistep_flow(scheduler):
        even_T, shift = torch.arange(1, steps + 1) / steps, scheduler.config.flow_shift
        return shift * even_T / (1 + (shift - 1) * even_T)
    # the training table of the scheduler, noise descending, with its resolution shift; index 0 is t = 1 step; one that
    # was drawn with holds the steps of that
    sigma_T = torch.as_tensor(scheduler.from_config(scheduler.config).sigmas).float().flip(0)
    return sigma_T[-steps:]  # a trailing zero closes the sampling table


def _is_flow_class(scheduler: Any) -> bool:
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler

    return isinstance(
        scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
    )


def shift_options(scheduler: Any, tokens: int, *, most_shift: float = 1.16) -> dict[str, float]:
    """What ``set_timesteps`` asks of an image with so many tokens: ``mu`` where the shift depends on that.

    A line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), as diffusers' pipelines draw it;
    ``most_shift`` is theirs where the configuration names none.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", most_shift)
    return {"mu": low + (high - low) * (tokens - least) / (most - least)}
