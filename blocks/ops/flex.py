"""Attention over the keys that a rule names, by torch's flex attention, which makes a kernel of the rule.

On a CUDA device it is compiled and passes over blocks of keys that no query sees; on a CPU it runs as plain torch, in
memory that grows with N^2, unless the code around it is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from blocks.ops.partial import Partial

Rule = Callable[[Tensor, Tensor], Tensor]
"""Whether a query sees a key, of the numbers of their tokens."""
_HELD_MASKS = 64


def why_no_flex(like: Tensor, *, mass: bool) -> str:
    """Why queries such as these cannot be computed; empty if they can.

    Args:
        like: Queries (B, h, N, d).
        mass: Whether the log-sum-exp is wanted, too.
    """
    if like.device.type not in ("cpu", "cuda"):
        return f"flex attention has no kernel for the device {like.device.type}"
    if like.device.type == "cuda":
        if like.dtype == torch.float64:
            return "flex attention has no kernel for float64 on a GPU"
        return (
            f"flex attention needs heads of 16 channels at least, got {like.shape[-1]}" if like.shape[-1] < 16 else ""
        )
    if like.requires_grad:
        return "flex attention has no backward pass on a CPU"
    return "flex attention tells no log-sum-exp on a CPU" if mass else ""


def flex_mix(q: Tensor, k: Tensor, v: Tensor, scale: float, rule: Rule, name: Hashable) -> Tensor:
    """Softmax attention of (B, h, N, d) over the keys that a rule names.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the logits.
        rule: Which keys a query sees.
        name: Tells rules apart: what one of a name says of N tokens is kept for the next call.
    """
    return _kernel(q)(q, k, v, block_mask=_held(q, rule, name), scale=scale)


def flex_partial(q: Tensor, k: Tensor, v: Tensor, scale: float, rule: Rule, name: Hashable) -> Partial:
    """As ``flex_mix``, with the log-sum-exp."""
    from torch.nn.attention.flex_attention import AuxRequest

    options: dict[str, Any] = {"block_mask": _held(q, rule, name), "scale": scale, "return_aux": AuxRequest(lse=True)}
    output, told = _kernel(q)(q, k, v, **options)
    return output, told.lse[..., None].float()


def _kernel(q: Tensor) -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # half a second, which most runs save

    return flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled()


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _held(q: Tensor, rule: Rule, name: Hashable) -> Any:
    if torch.compiler.is_compiling():
        return _block_mask(rule, q.shape[2], q.device)
    key = (name, q.shape[2], q.device)
    if key not in _masks:
        if len(_masks) == _HELD_MASKS:
            _masks.clear()
        _masks[key] = _block_mask(rule, q.shape[2], q.device)
    return _masks[key]


_masks: dict[Hashable, Any] = {}


def _block_mask(rule: Rule, tokens: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def of_tokens(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(query, key)

    return create_block_mask(of_tokens, None, None, tokens, tokens, device=device.type)
