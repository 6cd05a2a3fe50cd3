"""TC-LLaVA's frame-wise block causal mask (Gao et al., arXiv 2409.03206)."""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.token_map import TokenMap


class FrameBlockAttention(MaskProgram):
    """Lets the tokens of a frame see each other both ways; frames and text see what comes before (TC-LLaVA).

    A frame is an image of the prompt. A model must be trained with it. The paper's second half, positions in time
    beside those in the text, is not here: how it joins the two is not told where this was made from.
    """

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed, and all of the same image."""
        same = queries.image[:, :, None] == keys.image[:, None]
        return allowed | (same & queries.visual[:, :, None] & keys.visual[:, None])[:, None]
