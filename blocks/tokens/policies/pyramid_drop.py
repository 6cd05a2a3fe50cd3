"""PyramidDrop: the deeper, the fewer image tokens (Xing et al., arXiv 2410.17247).

Shape legend: B batch, h heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blocks.tokens.base import Positions, positions_of, share
from blocks.tokens.policies.last_token import LastTokenPolicy, shares
from blocks.tokens.token_map import TokenMap, best_visual


class PyramidDrop(LastTokenPolicy):
    """Before each of some layers, keeps a share of the image tokens that are left, by the prompt's last token.

    The paper computes attention anew from the projections of the layer to come; here it is that of the layer before.

    Args:
        layers: From 1; a quarter, half and three quarters of the depth if not given.
        ratio: Share of the image tokens left that stays at each of them.
        positions: ``renumber`` as in the paper, or ``keep``.
    """

    def __init__(
        self, layers: Sequence[int] | None = None, ratio: float = 0.5, positions: Positions = "renumber"
    ) -> None:
        if layers is not None and min(layers, default=0) < 1:
            raise ValueError(f"layers are {list(layers)}: some, from 1 on, as the layer before each is looked at")
        self.layers = None if layers is None else sorted(layers)
        self.ratio, self.positions = share(ratio, name="ratio"), positions_of(positions)

    def at(self, layer: int, depth: int) -> bool:
        """At those layers."""
        return layer in (self.layers or {max(depth * part // 4, 1) for part in (1, 2, 3)})

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        """All text and the most attended of the image tokens left."""
        return best_visual(attention.mean(1), tokens, shares(tokens, self.ratio))
