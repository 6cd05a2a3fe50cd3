"""Softplus in place of the exponential, and weights made sharper (Gao et al., arXiv 2501.13428).

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import AttentionFunction, Kernel
from blocks.tokens.attending import ROWS_AT_ONCE, Attending


class SoftplusAttention(AttentionFunction):
    """Weights in proportion to the softplus of scaled logits, raised to a power (LSSAR).

    Logits are scaled by the logarithm of how many tokens a row sees, over that of ``length``. The paper trains models
    with it from scratch; its own coefficients are not known here.

    Args:
        power: To which weights are raised before they are made to sum to 1 once more; 1 leaves them.
        length: Number of tokens at which logits are as they are; no scaling by length if not given.
    """

    def __init__(self, power: float = 2.0, length: int | None = None) -> None:
        if power < 1 or (length is not None and length < 2):
            raise ValueError(f"power is from 1 and length from 2; got {power} and {length}")
        self.power, self.length = power, length

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """Row by row: no kernel knows it."""
        values = value.repeat_interleave(attending.query.shape[1] // value.shape[1], 1)
        rows = torch.arange(attending.query.shape[2], device=value.device)
        parts = [self.sharpened(attending.within(some)).to(values) @ values for some in rows.split(ROWS_AT_ONCE)]
        return torch.cat(parts, 2).transpose(1, 2)

    def sharpened(self, attending: Attending) -> Tensor:
        """Weights (B, h, Q, K)."""
        logits = attending.logits()
        if self.length is not None:
            seen = attending.allowed.sum(-1, keepdim=True).clamp(min=2)
            logits = logits * (seen.to(logits).log() / torch.tensor(float(self.length)).log())
        sharp = F.normalize(F.softplus(logits) * attending.allowed, p=1.0, dim=-1).pow(self.power)
        return F.normalize(sharp, p=1.0, dim=-1)
