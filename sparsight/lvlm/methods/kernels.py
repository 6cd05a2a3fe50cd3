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

from sparsight.common.names import named

KERNELS = ("eager", "sdpa", "flex_attention")
Around = Callable[..., tuple[Tensor, Tensor | None]]


@contextmanager
def around_kernel(kernel: str, around: Around) -> Iterator[None]:
    """Call ``around(base, module, query, key, value, mask, **options)`` in place of a kernel, whose own is ``base``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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


def known(options: dict[str, Any]) -> None:
    """Refuse attention whose weights a recipe cannot tell.

    Raises:
        ValueError: The kernel adds a sink to every row, or a bias.
    """
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise ValueError("attention with sinks or biases of its own has no weights that a recipe knows")


def as_bools(mask: Any, shape: tuple[int, int, int, int] | None = None) -> Tensor:
    """A mask (B or 1, 1, Q, K) as bools.

    Args:
        mask: Bools, what is added to logits, or a mask of blocks.
        shape: B, heads, Q and K, of which a mask of blocks is made out.
    """
    if isinstance(mask, Tensor):
        return mask if mask.dtype == torch.bool else mask == 0
    from torch.nn.attention.flex_attention import create_mask

    samples, heads, queries, keys = shape or mask.shape
    return create_mask(mask.mask_mod, samples, heads, queries, keys, device=mask.kv_num_blocks.device)


def as_kernel_reads(
    allowed: Tensor | None, kernel: str, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor | Any | None:
    """A mask (B, 1 or h, Q, K) as a kernel reads it, in which rows without any key give numbers too.

    Args:
        allowed: True where a query sees a key, or tokens that a layer with a state computes (B, Q).
        kernel: Name.
        dtype: Of the queries.
        bias: What is added to logits, of a shape that fits.

    Raises:
        ValueError: The kernel takes no bias.
    """
    if allowed is None or allowed.ndim == 2:
        return allowed
    if kernel == "flex_attention":
        if bias is not None:
            raise ValueError("flex_attention adds nothing to logits: set attn_implementation to sdpa or eager")
        return _blocks(allowed)
    if kernel == "sdpa" and bias is None:
        return allowed
    least = torch.finfo(dtype).min
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device) if bias is None else bias.to(dtype)
    return added.masked_fill(~allowed, least)


def _blocks(allowed: Tensor) -> Any:
    """A mask of blocks from one of single tokens; a row without any key sees the first one."""
    from torch.nn.attention.flex_attention import create_block_mask

    empty = ~allowed.any(-1)
    seen = torch.cat([allowed[..., :1] | empty[..., None], allowed[..., 1:]], -1)
    samples, heads, queries, keys = seen.shape

    def mask_mod(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[sample.clamp(max=samples - 1), head.clamp(max=heads - 1), query, key]

    return create_block_mask(mask_mod, samples, heads if heads > 1 else None, queries, keys, device=seen.device)
