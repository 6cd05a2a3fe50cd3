"""Attention kernels of transformers with something around them.

A kernel is overridden under its own name: masks are then still made for it, and configurations stay as they are.

Shape legend: B batch, h heads, Q queries, K keys, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsight.common.names import named

KERNELS = ("eager", "sdpa")  # whose masks may be of single tokens
Around = Callable[..., tuple[Tensor, Tensor | None]]


@contextmanager
def around_kernel(kernel: str, around: Around) -> Iterator[None]:
    """Call ``around(base, module, query, key, value, mask, **options)`` in place of a kernel, whose own is ``base``."""
    before = ALL_ATTENTION_FUNCTIONS.get(kernel)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        base = before or named(f"{type(module).__module__}.eager_attention_forward")
        return around(base, module, query, key, value, attention_mask, **options)

    ALL_ATTENTION_FUNCTIONS[kernel] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kernel]
        if ALL_ATTENTION_FUNCTIONS.get(kernel) is not before:
            ALL_ATTENTION_FUNCTIONS[kernel] = before


def attention_weights(query: Tensor, key: Tensor, allowed: Tensor, options: dict[str, Any]) -> Tensor:
    """Attention weights (B, h, Q, K), float32, of a few queries.

    Args:
        query: (B, h, Q, d).
        key: (B, g, K, d), each for h / g heads.
        allowed: (B or 1, 1, Q, K).
        options: What the kernel was called with besides.

    Raises:
        ValueError: The kernel adds a sink to every row, or a bias.
    """
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise ValueError("attention with sinks or biases of its own has no weights that a recipe knows")
    logits = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * options["scaling"]
    if (cap := options.get("softcap")) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits.float().masked_fill(~allowed, torch.finfo(torch.float32).min / 2).softmax(-1)


def as_kernel_reads(allowed: Tensor | None, kernel: str, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, 1, Q, K) as a kernel reads it; rows without any key see all of them a little, and are no numbers else.

    Args:
        allowed: True where a query sees a key, or tokens that a layer with a state computes (B, Q).
        kernel: Name.
        dtype: Of the queries.
    """
    if allowed is None or kernel == "sdpa" or allowed.ndim == 2:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
