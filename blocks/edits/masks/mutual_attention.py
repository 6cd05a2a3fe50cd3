"""AKI's modality-mutual attention (Wang et al., arXiv 2503.02597)."""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.token_map import QUESTION, TokenMap


class ModalityMutualAttention(MaskProgram):
    """Lets image tokens see the question behind them, beside what comes before (AKI).

    A model must be trained with it. The question is all text between the first image and the answer; what follows the
    first answer is never seen, as it is not known when the image is read.
    """

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed, and images the question."""
        return allowed | (queries.visual[:, :, None] & (keys.kind == QUESTION)[:, None])[:, None]
