"""In which precision a module computes, whatever its weights are stored in; and tensors on their way to its device."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

COMPUTE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@runtime_checkable
class Typed(Protocol):
    """A module that tells its precision."""

    dtype: torch.dtype


@runtime_checkable
class Telling(Protocol):
    """A child that tells in which precision the module that has it computes, where its weights do not."""

    computes_in: torch.dtype


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Precision of a module's inputs.

    diffusers' models tell it themselves, also where layerwise casting stores their weights in 8 bits; of others it is
    that of the first weight that arithmetic can be done in, or float32 without one.
    """
    for child in module.children():
        if isinstance(child, Telling):
            return child.computes_in
    if isinstance(module, Typed) and module.dtype in COMPUTE:
        return module.dtype
    return next((p.dtype for p in module.parameters() if p.dtype in COMPUTE), torch.float32)


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
