"""LongLoRA's shifted groups (Chen et al., arXiv 2309.12307), and SinkLoRA's sinks (Zhang, arXiv 2406.05678).

Shape legend: B batch, Q queries, K keys, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.edits.base import MaskProgram, Where, between
from blocks.tokens.token_map import TokenMap


class ShiftedGroups(MaskProgram):
    """While a model trains, tokens see their group alone; half of the heads have groups shifted by half (LongLoRA).

    Answers are written with the whole attention. Groups are shifted without going round: what the authors' code rolls
    to the other end would let the first tokens see the last ones. A mask gives the result and no speed.

    Args:
        parts: Into how many groups a text is cut.
    """

    trains_only = True

    def __init__(self, parts: int = 4) -> None:
        if parts < 1:
            raise ValueError(f"parts is {parts}: a text is cut into one group at least")
        self.parts = parts

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed within the groups of each head."""
        return allowed & self.groups(queries, keys, where)

    def groups(self, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """Who is in one group (B, h, Q, K)."""
        looks, seen = ranks(queries, where), ranks(keys, where)
        size = (-(-keys.present.sum(1) // self.parts)).clamp(min=1)[:, None]
        same = [(looks + move) // size for move in (0, size // 2)], [(seen + move) // size for move in (0, size // 2)]
        plain, shifted = (one[:, :, None] == other[:, None] for one, other in zip(*same, strict=True))
        half = where.heads // 2
        return torch.stack([plain] * half + [shifted] * (where.heads - half), 1)


class SinkGroups(ShiftedGroups):
    """Shifted groups beside which all tokens see the first ones (SinkLoRA).

    The authors' code has no such part; it is made by the paper's words.

    Args:
        parts: Into how many groups a text is cut.
        sinks: How many first tokens all see.
    """

    def __init__(self, parts: int = 4, sinks: int = 4) -> None:
        super().__init__(parts)
        self.sinks = int(between(sinks, 0, float("inf"), name="sinks"))

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed within groups, and the first tokens."""
        first = (ranks(keys, where) < self.sinks)[:, None, None]
        return allowed & (self.groups(queries, keys, where) | first)


def ranks(tokens: TokenMap, where: Where) -> Tensor:
    """How far from the first token of its sample each one stands (B, T), in places of the prompt."""
    return tokens.place if where.start is None else tokens.place - where.start[:, None]
