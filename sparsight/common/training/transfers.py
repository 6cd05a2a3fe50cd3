"""Tensors on their way from the processor to the device that computes, without a wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

ON_PROCESSOR = ("index", "label", "timestep")
"""What of a training batch the processor reads: it stays there, and what the device needs of it is sent."""


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a CUDA device it goes from pinned memory, while the processor works on."""
    if device.type == "cuda" and not x.is_cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=works_on(device))


def works_on(device: torch.device) -> bool:
    """Whether the processor may work on while something is copied; a device without numbers copies none."""
    return device.type in ("cuda", "meta")
