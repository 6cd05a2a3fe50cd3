"""EE-MLLM's composite attention (Ma et al., arXiv 2408.11795)."""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.token_map import TokenMap


class CompositeAttention(MaskProgram):
    """Hides images from images: an image token sees itself alone, of all image tokens and text (EE-MLLM).

    So its own value is what it gets, and the layer's weights carry it on without any product of queries and keys. On a
    trained model without further training this is EE-MLLM-F. As a mask it gives that result, and no speed.
    """

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed to text; to images, themselves."""
        itself = queries.place[:, :, None] == keys.place[:, None]
        return allowed & (~queries.visual[:, :, None] | itself)[:, None]
