"""TC-LLaVA's positions in time beside those in the text (Gao et al., arXiv 2409.03206).

Shape legend: B batch, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import PositionEdit
from blocks.tokens.token_map import TokenMap


class FramePositions(PositionEdit):
    """Adds the number of its frame to the position of each token (after TC-LLaVA's temporal-aware dual RoPE).

    Each image of a sample is a frame, counted from 1, whose tokens share the number; text has that of the frame before
    it. So distances inside a frame, and inside a text, stay as they are, and frames move apart. How the paper joins
    both positions is not known here: they are added. A model should be trained with it, and with
    ``FrameBlockAttention``.

    Args:
        weight: By which the number is multiplied, whole.
    """

    def __init__(self, weight: int = 1) -> None:
        if weight < 1:
            raise ValueError(f"weight is whole and from 1; got {weight}")
        self.weight = int(weight)

    def added(self, tokens: TokenMap) -> Tensor:
        """Numbers of frames."""
        return (tokens.image + 1).clamp(min=0).cummax(1).values * self.weight
