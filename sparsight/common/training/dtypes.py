"""In which precision a module computes, whatever its weights are stored in."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

COMPUTE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@runtime_checkable
class Typed(Protocol):
    """A module that tells its precision."""

    dtype: torch.dtype


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Precision of a module's inputs.

    diffusers' models tell it themselves, also where layerwise casting stores their weights in 8 bits; of others it is
    that of the first weight that arithmetic can be done in, or float32 without one.
    """
    if isinstance(module, Typed) and module.dtype in COMPUTE:
        return module.dtype
    return next((p.dtype for p in module.parameters() if p.dtype in COMPUTE), torch.float32)
