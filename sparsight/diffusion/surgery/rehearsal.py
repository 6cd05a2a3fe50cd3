"""What an attention calls in a forward pass, found out without memory and before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


@dataclass
class Called:
    """What a forward pass called.

    Attributes:
        cores: How often scaled-dot-product attention.
        layers: Names of the weights of linear maps, below the attention.
    """

    cores: int = 0
    layers: set[str] = field(default_factory=set)


@torch.no_grad()
def rehearsed(attention: Any, *, text_channels: int | None = None) -> Called | None:
    """What a self-attention of (B, N, C) calls with the processor that it has now.

    Args:
        attention: Stays as it is: tensors without memory compute in place of its own.
        text_channels: Width of text that comes beside the hidden state, if any does.

    Returns:
        ``None`` where a pass is not possible so, which says nothing about one with memory.
    """
    seen = Called()
    try:
        own = {**dict(attention.named_parameters()), **dict(attention.named_buffers())}
        tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
        query = next(module for module in attention.to_q.modules() if isinstance(module, nn.Linear))
        widths = [query.in_features] + ([] if text_channels is None else [text_channels])
        given = [torch.empty(1, 4, width, dtype=query.weight.dtype, device="meta") for width in widths]
        with _Noting(seen, {id(tensor): name for name, tensor in tensors.items()}):
            functional_call(attention, tensors, tuple(given))
    except Exception:  # kernels without a form for meta tensors, processors that want more: the real pass will tell
        return None
    return seen


class _Noting(TorchFunctionMode):
    def __init__(self, seen: Called, names: dict[int, str]) -> None:
        super().__init__()
        self.seen, self.names = seen, names

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.seen.cores += 1
        elif function is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.seen.layers |= {self.names[id(weight)]} if id(weight) in self.names else set()
        return function(*args, **kwargs)
