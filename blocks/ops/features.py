"""Feature maps of linear attention: a weight is the product of the features of a query and of a key.

Shape legend: B batch, h heads, N tokens, d channels of a head, f features.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import under_autocast

MAPS = ("elu", "relu", "identity", "focused", "hedgehog")
_FOCUS = 3  # power of the focused map, as published


class FeatureMap(nn.Module):
    """Features of queries or keys, in float32.

    ``elu`` is ELU + 1, ``relu`` as in SANA, ``identity`` as in InLine (features may be negative), ``focused`` sharpens
    the direction of ReLU's by a power and keeps its length (Han et al., "FLatten Transformer", arXiv 2308.00442), and
    ``hedgehog`` is the softmax of a learned linear map beside that of its negative (Zhang et al., "The Hedgehog and the
    Porcupine", arXiv 2402.04347).

    Args:
        kind: One of ``MAPS``.
        heads: Number of heads h.
        head_dim: Channels d of each.
        width: Of the learned map; d if not given.
    """

    def __init__(self, kind: str, *, heads: int, head_dim: int, width: int | None = None) -> None:
        super().__init__()
        self.kind, self.width = kind, head_dim
        self.weight: nn.Parameter | None = None
        if kind == "hedgehog":
            self.width = 2 * (width or head_dim)
            self.weight = nn.Parameter(torch.eye(head_dim, width or head_dim).repeat(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, h, N, f) of (B, h, N, d)."""
        x = x.float()
        if self.kind == "elu":
            return F.elu(x) + 1
        if self.kind == "relu":
            return F.relu(x)
        if self.kind == "focused":
            kept = F.relu(x) + 1e-6
            sharp = (kept / kept.amax(-1, keepdim=True)) ** _FOCUS
            return sharp * (kept.norm(dim=-1, keepdim=True) / sharp.norm(dim=-1, keepdim=True))
        if self.weight is not None:
            x = x @ self.weight.float()
            return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)
        return x

    def flops(self, tokens: int, heads: int, head_dim: int) -> int:
        """FLOPs of the learned map; others have none that count."""
        return 0 if self.weight is None else tokens * heads * head_dim * self.width


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Sums over all tokens stay in float32: differences of them are small."""
    return torch.autocast(x.device.type, enabled=False) if under_autocast(x) else nullcontext()
