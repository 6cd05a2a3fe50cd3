"""In which precision a module computes, whatever its weights are stored in."""

from __future__ import annotations

import torch
from torch import nn

COMPUTE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Precision of a module's inputs.

    diffusers' models tell it themselves, also where layerwise casting stores their weights in 8 bits; of others it is
    that of the first weight that arithmetic can be done in, or float32 without one.
    """
    told = getattr(module, "dtype", None)
    if told in COMPUTE:
        return told
    return next((p.dtype for p in module.parameters() if p.dtype in COMPUTE), torch.float32)
