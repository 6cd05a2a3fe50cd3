"""LoFiT: a few heads are found by scales that learn, and get offsets that learn (Yin et al., arXiv 2406.01563).

Shape legend: B batch, Q queries, L layers, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blocks.edits.base import HeadEdit
from blocks.tokens.token_map import TokenMap
from blocks.tokens.weighted import Shape, Weighted


class LoFiT(Weighted, HeadEdit):
    """Adds offsets to what some heads answer, nothing else of the model being trained (LoFiT).

    In the first stage that trains methods, all heads learn scales: z (1 + a), with a penalty on a. Where the next one
    begins, those with the largest scales are chosen, scales are dropped, and what learns is an offset for each: z + v.

    Args:
        count: How many heads are chosen; the paper takes about 3 %.
        penalty: Of the sum of absolute scales.
        layers: Whose heads take part; all of them if not given.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(
        self,
        count: int = 32,
        penalty: float = 5e-4,
        layers: Sequence[int] | None = None,
        trained: str | None = None,
    ) -> None:
        if count < 1 or penalty < 0:
            raise ValueError(f"count is from 1 and penalty from 0; got {count} and {penalty}")
        self.count, self.penalty = count, penalty
        self.layers = None if layers is None else [int(layer) for layer in layers]
        self.trained = trained

    def at(self, layer: int, depth: int) -> bool:
        """At the layers that take part."""
        missing = [number for number in self.layers or () if not 0 <= number < depth]
        if missing:
            raise ValueError(f"LoFiT names layers {missing}; there are 0 to {depth - 1}")
        return self.layers is None or layer in self.layers

    def make(self, shape: Shape) -> nn.Module:
        """Scales of nothing, offsets of next to nothing, and no head chosen."""
        taking_part = [layer for layer in range(shape.depth) if self.at(layer, shape.depth)]
        if self.count > len(taking_part) * shape.heads:
            raise ValueError(
                f"LoFiT chooses {self.count} of {len(taking_part) * shape.heads} heads: set count to less than that"
            )
        return _Heads(shape)

    def begin(self, stage: int) -> None:
        """Scales learn until the first stage is over; then heads are chosen, if they are not yet."""
        heads = self.held
        if stage > 0 and not bool(heads.chosen.any()):
            self.choose()
        offsets = bool(heads.chosen.any())
        heads.scale.requires_grad_(not offsets)
        heads.offset.requires_grad_(offsets)

    @torch.no_grad()
    def choose(self) -> None:
        """The heads whose scales have the largest norm."""
        heads = self.held
        norms = heads.scale.norm(dim=-1)
        outside = [layer for layer in range(len(norms)) if not self.at(layer, len(norms))]
        norms[outside] = -1.0
        best = norms.flatten().topk(self.count).indices
        heads.chosen.view(-1)[best] = True
        heads.scale.zero_()

    def loss(self) -> Tensor | None:
        """The penalty, while scales learn."""
        heads = self.held
        return None if bool(heads.chosen.any()) else self.penalty * heads.scale.abs().sum()

    def edit(self, heads: Tensor, layer: int, queries: TokenMap) -> Tensor:
        """Z (1 + a) of all heads, or z + v of those chosen."""
        own = self.held
        chosen = own.chosen[layer]
        changed = heads * (1 + own.scale[layer]) + own.offset[layer] * chosen[:, None]
        return changed.to(heads)


class _Heads(nn.Module):
    """Scales and offsets (L, h, d), and which heads are chosen (L, h)."""

    chosen: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = (shape.depth, shape.heads, shape.head_channels)
        self.scale = nn.Parameter(torch.zeros(size))
        self.offset = nn.Parameter(1e-3 * torch.randn(size))
        self.register_buffer("chosen", torch.zeros(size[:2], dtype=torch.bool))
