"""FEATHER: attention without positions, and a grid that stays for a while (Endo et al., arXiv 2412.13180).

Shape legend: B batch, h heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blocks.tokens.attending import Attending, masked_softmax
from blocks.tokens.base import Decision, LayerPolicy, Positions, Sight, positions_of, share
from blocks.tokens.policies.last_token import shares
from blocks.tokens.token_map import TokenMap, best_visual


class Feather(LayerPolicy):
    """Twice keeps the image tokens that the prompt's last token would attend to if nothing had a position (FEATHER).

    Position encoding favours the end of the image, at the cost of what stands at its top. At the first layer an even
    grid of patches stays, too. The softmax is over image tokens alone.

    Args:
        layers: The two layers before which tokens leave; a quarter and half of the depth if not given, 8 and 16 of 32.
        ratios: Shares of the image tokens left that stay at each.
        stride: Of rows and columns of the grid that stays at the first.
        positions: ``keep`` as in the paper, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        ratios: Sequence[float] = (0.3, 0.09),
        stride: int = 3,
        positions: Positions = "keep",
    ) -> None:
        if layers is not None and (len(layers) != 2 or not 1 <= layers[0] < layers[1]):
            raise ValueError(f"layers are two, from 1 on and one after the other; got {list(layers)}")
        if len(ratios) != 2 or stride < 1:
            raise ValueError(f"ratios are two and stride is from 1; got {list(ratios)} and {stride}")
        self.layers = None if layers is None else list(layers)
        self.ratios = [share(ratio, name="ratios") for ratio in ratios]
        self.stride, self.positions = stride, positions_of(positions)

    def at(self, layer: int, depth: int) -> bool:
        """At both."""
        return layer in self._layers(depth)

    def _layers(self, depth: int) -> list[int]:
        first = max(depth // 4, 1)
        return self.layers or [first, max(depth // 2, first + 1)]

    def decide(self, sight: Sight) -> Decision:
        """The best, and at first the grid."""
        assert sight.before is not None
        first = sight.layer == self._layers(sight.depth)[0]
        scores = without_positions(sight.before)
        keep = best_visual(scores, sight.tokens, shares(sight.tokens, self.ratios[0 if first else 1]))
        return Decision(keep | self.grid(sight.tokens) if first else keep)

    def grid(self, tokens: TokenMap) -> Tensor:
        """Patches of every so many rows and columns (B, T)."""
        return tokens.visual & (tokens.row >= 0) & (tokens.row % self.stride == 0) & (tokens.column % self.stride == 0)


def without_positions(attending: Attending) -> Tensor:
    """Attention of the prompt's last token on image tokens, mean over heads (B, T)."""
    last = attending.unturned().last()
    return masked_softmax(last.logits(), last.allowed & last.keys.visual[:, None, None])[:, :, 0].mean(1).detach()
