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

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the logits.
        mask: Boolean, true where a query sees a key, or added to the logits; broadcast to (B, h, N, M).
    """
    logits = (q @ k.mT).float() * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    lse = _lse(logits)
    weights = (logits - _finite(lse)).exp()
    return weights.to(v.dtype) @ v, lse


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
    outputs = torch.stack([output for output, _ in parts], -1)
    return (outputs.float() * weights[..., None, :]).sum(-1).to(outputs.dtype), lse


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
