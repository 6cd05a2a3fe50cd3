"""CMAI: the question sees the image tokens that it agrees on (Yu et al., arXiv 2411.15453).

Shape legend: B batch, R rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.base import share
from blocks.tokens.token_map import QUESTION, TokenMap


class CorrelationMask(MaskProgram):
    """Hides from each word of the question the image tokens of the lowest focus (CMAI).

    Focus of a word on an image token is its attention on the question times the question's on that token, mean over
    heads, in the layer before. Answers see all: their focus would be another one at every step.

    Args:
        layers: Where.
        ratio: Share of each sample's image tokens that a word sees.
    """

    looks = True

    def __init__(self, layers: list[int], ratio: float = 0.5) -> None:
        if not layers or min(layers) < 1:
            raise ValueError(f"layers are {layers}: some, from 1 on, as the layer before each is looked at")
        self.layers, self.ratio = sorted(layers), share(ratio, name="ratio")

    def at(self, layer: int, depth: int) -> bool:
        """At those layers."""
        return layer in self.layers

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed, without pairs of low focus."""
        if where.before is None:
            return allowed
        asks = where.before.queries.kind == QUESTION
        places = asks.any(0).nonzero()[:, 0]
        if not len(places):
            return allowed
        weights = where.before.within(places).weights().mean(1).detach()  # B, R, T
        words = weights[:, :, places] * asks[:, None, places]
        focus = (words @ weights).masked_fill(~keys.visual[:, None], float("-inf"))
        rank = focus.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        count = (keys.visual.sum(1).double() * self.ratio + 1e-9).long().clamp(min=1)
        hidden = keys.visual[:, None] & (rank >= count[:, None, None]) & asks[:, places, None]
        return allowed & ~torch.zeros_like(allowed[:, 0]).index_copy(1, places, hidden)[:, None]
