"""Croc's mixed attention (Xie et al., arXiv 2410.14332)."""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.token_map import ANSWER, TokenMap


class CrocAttention(MaskProgram):
    """Lets image tokens see each other both ways, in all images of the prompt (Croc).

    A model must be trained with it. The authors' code lets all of the prompt see itself instead, the question too:
    that is ``prompt``. What follows the first answer is never seen from before.

    Args:
        prompt: Whether text of the prompt is seen both ways, too.
    """

    def __init__(self, prompt: bool = False) -> None:
        self.prompt = prompt

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed, and images each other."""
        if self.prompt:
            looks, seen = queries.present & (queries.kind != ANSWER), keys.present & (keys.kind != ANSWER)
        else:
            looks, seen = queries.visual, keys.visual
        return allowed | (looks[:, :, None] & seen[:, None])[:, None]
