"""FitPrune: how many image tokens each layer may lose, by calibration (Ye et al., arXiv 2409.10197).

Shape legend: B batch, h heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blocks.tokens.artefact import Artefact, read_artefact
from blocks.tokens.attending import Attending
from blocks.tokens.base import Decision, LayerPolicy, Positions, Sight, positions_of
from blocks.tokens.token_map import QUESTION, TokenMap, best_visual


class FitPrune(LayerPolicy):
    """Before each layer, drops as many image tokens as a calibration says: those of least attention in the one before.

    A token's measure is what the question's words give it, times what image tokens give it, each the mean over rows of
    the largest of all heads. Tokens leave behind a layer's feed-forward part; in the paper, in front of it.

    Args:
        artefact: File, or its content, of ``sparsight.lvlm.methods.calibration.searches.FitPruneShares``.
        positions: ``keep`` as in the paper, or ``renumber`` for positions without gaps.
    """

    def __init__(self, artefact: str | Mapping[str, Any], positions: Positions = "keep") -> None:
        self.artefact: Artefact = read_artefact(artefact, kind="FitPruneShares")
        self.positions = positions_of(positions)
        self._drop = [float(part) for part in self.artefact["values"]["drop"]]
        if not self._drop or not all(0 <= part < 1 for part in self._drop):
            raise ValueError(f"drop holds shares of image tokens, 0 to 1, one a layer; got {self._drop}")

    def at(self, layer: int, depth: int) -> bool:
        """Behind layers that lose any."""
        return 1 <= layer <= len(self._drop) and self._drop[layer - 1] > 0

    def decide(self, sight: Sight) -> Decision:
        """All but the least attended."""
        assert sight.before is not None
        tokens, begun = sight.tokens, sight.begun
        leaving = (begun.double() * self._drop[sight.layer - 1] + 1e-9).long()
        count = (tokens.visual.sum(1) - leaving).clamp(min=1)
        cross, own = measures(sight.before, tokens)
        return Decision(best_visual(cross * own, tokens, count))


def measures(attending: Attending, tokens: TokenMap) -> tuple[Tensor, Tensor]:
    """What question and images give to each token (B, T), mean over rows of the largest of all heads."""
    found = []
    for rows in (tokens.kind == QUESTION, tokens.visual):
        total = attending.received(rows, over="max")[:, 0]
        found.append((total / rows.sum(1, keepdim=True).clamp(min=1)).detach())
    return found[0], found[1]
