"""Kinds of noise schedulers."""

from __future__ import annotations

from typing import Any


def is_flow_matching(scheduler: Any) -> bool:
    """Whether denoisers of a scheduler predict the flow from noise to picture."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler

    return isinstance(
        scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
    )
