"""Kinds of noise schedulers."""

from __future__ import annotations

from typing import Any


def is_flow_matching(scheduler: Any) -> bool:
    """Whether denoisers of a scheduler predict the flow from noise to image."""
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
