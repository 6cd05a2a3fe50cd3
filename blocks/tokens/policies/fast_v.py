"""FastV: after a few layers, half of the image is enough (Chen et al., arXiv 2403.06764).

Shape legend: B batch, h heads, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from blocks.tokens.base import Positions, positions_of, share
from blocks.tokens.policies.last_token import LastTokenPolicy, shares
from blocks.tokens.token_map import TokenMap, best_visual


class FastV(LastTokenPolicy):
    """Before layer K, keeps the image tokens to which the prompt's last token attended most in layer K - 1.

    Attention is the mean over heads, as the authors' code has it; the paper speaks of the mean over tokens.

    Args:
        layer: K, from 1; the first layer that computes fewer tokens.
        ratio: Share of each sample's image tokens that stays; 1 - R in the paper.
        positions: ``keep`` as in the paper, or ``renumber`` for positions without gaps.
    """

    def __init__(self, layer: int = 2, ratio: float = 0.5, positions: Positions = "keep") -> None:
        if layer < 1:
            raise ValueError(f"layer is {layer}: from 1 on, as the layer before it is looked at")
        self.layer, self.ratio, self.positions = layer, share(ratio, name="ratio"), positions_of(positions)

    def at(self, layer: int, depth: int) -> bool:
        """At one layer alone."""
        return layer == self.layer

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        """All text and the most attended image tokens."""
        return best_visual(attention.mean(1), tokens, shares(tokens, self.ratio))
