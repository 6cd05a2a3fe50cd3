"""MoA: a span of its own for each head, which grows with the text (Fu et al., arXiv 2406.14909).

Shape legend: B batch, Q queries, K keys, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.edits.masks.shifted_groups import ranks
from blocks.tokens.token_map import TokenMap


class ElasticSpans(MaskProgram):
    """Each head sees a last part of what came before: a + b n of n tokens (MoA).

    The paper finds a and b of every head by a programme over profiled influences; here they are given. A mask gives
    the result and no speed.

    Args:
        spans: By layer, a pair (a, b) for every head.
        sinks: How many first tokens every head sees.
    """

    def __init__(self, spans: Mapping[int, Sequence[Sequence[float]]], sinks: int = 0) -> None:
        self.spans = {int(layer): [[float(a), float(b)] for a, b in pairs] for layer, pairs in spans.items()}
        if not self.spans or sinks < 0:
            raise ValueError(f"spans name a layer at least, and sinks are 0 or more; got {self.spans} and {sinks}")
        self.sinks = sinks

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return layer in self.spans

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed within the span of each head; a token sees itself always."""
        pairs = torch.tensor(self.spans[where.layer], device=allowed.device)
        if len(pairs) != where.heads:
            raise ValueError(f"ElasticSpans has {len(pairs)} spans in layer {where.layer}, of {where.heads} heads")
        looks, seen = ranks(queries, where), ranks(keys, where)
        span = pairs[:, 0, None] + pairs[:, 1, None] * (looks[:, None] + 1)  # B, h, Q
        gap = (looks[:, :, None] - seen[:, None])[:, None]
        return allowed & ((gap < span[..., None].clamp(min=1)) | (seen < self.sinks)[:, None, None])
