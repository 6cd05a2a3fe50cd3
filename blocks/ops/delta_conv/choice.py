"""Whether the delta convolution can be computed by its Triton kernels, and if not, why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.base import Grid
from blocks.ops.delta_conv.form import Form, Layers
from blocks.ops.delta_conv.torch import precision, why_not_plain
from blocks.ops.triton_here import PRECISIONS, Machine, why_not_on

MAX_STAGES, MAX_KERNEL, MAX_TOKENS = 4, 49, 1 << 30  # as offsets inside a plane are 32 bits wide


def why_no_triton(hidden_BNC: Tensor, layers: Layers, form: Form, grid: Grid, machine: Machine) -> str:
    """Why the kernels cannot compute a hidden state on a grid, here and now; empty if they can."""
    device, dtype = hidden_BNC.device, precision(hidden_BNC)
    if reason := why_not_on(device, machine):
        return reason
    on_cuda = device.type == "cuda"
    if on_cuda and not torch.compiler.is_compiling() and torch.cuda.get_device_capability(device) < (8, 0):
        return "a kernel needs a device of compute capability 8.0"
    if dtype not in PRECISIONS:
        return f"no kernel computes in {dtype}"
    if not on_cuda and dtype == torch.bfloat16:
        return "Triton's interpreter does not multiply bfloat16"
    if reason := why_not_plain(hidden_BNC, layers):
        return reason
    first: Any = layers.depthwise[0]
    side = first.weight.shape[-1]
    if len(form.scales) > MAX_STAGES or side > MAX_KERNEL:
        return f"kernels serve {MAX_STAGES} stages and sides of {MAX_KERNEL} at most, not {len(form.scales)} and {side}"
    return f"kernels serve {MAX_TOKENS} tokens at most" if grid.tokens > MAX_TOKENS else ""
