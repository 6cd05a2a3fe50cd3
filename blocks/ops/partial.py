"""Softmax attention over parts of the keys, and its union: one softmax through the log-sum-exp of each part.

Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867. A part over no key has the
log-sum-exp minus infinity and gives zero; a union of such parts, too.

Shape legend: B batch, h heads, N queries, M keys, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Partial = tuple[Tensor, Tensor]
"""Attention over some keys: output (B, h, N, d), and the log-sum-exp of its logits (B, h, N, 1) in fp32."""


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Partial:
    """Softmax attention of queries (B, h, N, d) over keys and values (B, h, M, d); memory grows with N * M.

    On a CPU, where nothing is to be differentiated, torch's fused kernel does it in little memory.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the logits.
        mask: Boolean, true where a query sees a key, or added to the logits; broadcast to (B, h, N, M).
    """
    if _has_fused_kernel(q, k, v, mask):
        return _fused(q, k, v, scale, mask)
    logits = (q @ k.mT).float() * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    lse = _lse(logits)
    weights = (logits - _finite(lse)).exp()
    return weights.to(v.dtype) @ v, lse


def _has_fused_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether torch tells the log-sum-exp of its fused kernel: that of CPUs, which cannot be differentiated by it."""
    if torch.compiler.is_compiling() or q.device.type != "cpu" or k.shape[-2] == 0 or q.shape[-1] != v.shape[-1]:
        return False
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, mask)):
        return False
    if q.dim() not in (4, 5) or q.shape[:-2] != k.shape[:-2] or not q.dtype == k.dtype == v.dtype:
        return False
    return mask is None or mask.dim() <= 4 or mask.shape[:2] == q.shape[:2]


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Partial:
    """As ``attend``, by the kernel behind ``scaled_dot_product_attention``."""
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
        mask = mask.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
        mask = mask.flatten(0, 1) if mask.dim() == 5 else mask[(None,) * (4 - mask.dim())]
    flat = [x.flatten(0, x.dim() - 4) for x in (q, k, v)]
    flat = [x if x.stride(-1) == 1 else x.contiguous() for x in flat]  # torch 2.11 reads others wrongly
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = fused(*flat, 0.0, False, attn_mask=mask, scale=scale)
    lse = lse[..., None].float()
    if mask is not None:  # of a query that sees nothing the kernel tells zero
        lse = lse.masked_fill(mask.amax(-1, keepdim=True) == -math.inf, -math.inf)
    return output.reshape(q.shape), lse.reshape(*q.shape[:-1], 1)


def merge(parts: Sequence[Partial]) -> Partial:
    """Attention over the union of disjoint sets of keys.

    Raises:
        ValueError: There is no part.
    """
    if not parts:
        raise ValueError("merge needs at least one part, got none")
    each = torch.cat([lse for _, lse in parts], -1)
    lse = _lse(each)
    weights = (each - _finite(lse)).exp()
    first, *others = (output for output, _ in parts)
    share, *shares = weights.split(1, -1)
    total = first.float() * share
    for output, share in zip(others, shares, strict=True):  # without a copy of all: that costs more than the parts
        total = torch.addcmul(total, output.float(), share)
    return total.to(first.dtype), lse


def _lse(logits: Tensor) -> Tensor:
    """Log-sum-exp over the last axis, kept; its gradient is zero where all is minus infinity."""
    if logits.shape[-1] == 0:
        return logits.sum(-1, keepdim=True) - math.inf
    top = _finite(logits.amax(-1, keepdim=True).detach())
    total = (logits - top).exp().sum(-1, keepdim=True)
    return (total.masked_fill(total == 0, 1.0).log() + top).masked_fill(total == 0, -math.inf)


def _finite(lse: Tensor) -> Tensor:
    """Zero where nothing is seen: minus infinity less itself is no number."""
    return lse.masked_fill(lse == -math.inf, 0.0)
