"""Knock-out of cross-modal information flow (Zhang et al., arXiv 2411.18620)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.token_map import QUESTION, SYSTEM, TokenMap

Part = Literal["system", "image", "question", "last"]
KINDS = {"system": SYSTEM, "question": QUESTION}


class Knockout(MaskProgram):
    """Forbids some tokens of the prompt to look at others in some layers, to see what flows there.

    A token goes on to see itself. Answers see what they saw; the first word of an answer comes from the prompt's last
    token, which is ``last`` and no part of ``question`` here.

    Args:
        looking: Who may not look.
        seen: At whom.
        layers: Numbers of the layers; the paper takes nine around each layer in turn.
    """

    def __init__(self, looking: Part, seen: Part, layers: Sequence[int]) -> None:
        for name, part in (("looking", looking), ("seen", seen)):
            if part not in get_args(Part):
                raise ValueError(f"{name} is {part!r}; allowed are {', '.join(get_args(Part))}")
        self.looking, self.seen, self.layers = looking, seen, sorted(layers)

    def at(self, layer: int, depth: int) -> bool:
        """At those layers."""
        return layer in self.layers

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed, without these edges."""
        cut = chosen_part(queries, self.looking)[:, :, None] & chosen_part(keys, self.seen)[:, None]
        itself = queries.place[:, :, None] == keys.place[:, None]
        return allowed & ~(cut & ~itself)[:, None]


def chosen_part(tokens: TokenMap, part: Part) -> Tensor:
    """Which tokens (B, T) belong to a part of the prompt."""
    asked = (tokens.kind == QUESTION) | (tokens.kind == SYSTEM)
    sample = torch.arange(len(asked), device=asked.device)
    last = torch.zeros_like(asked)
    last[sample, tokens.last] = asked[sample, tokens.last]
    if part == "last":
        return last
    return tokens.visual if part == "image" else (tokens.kind == KINDS[part]) & ~last
