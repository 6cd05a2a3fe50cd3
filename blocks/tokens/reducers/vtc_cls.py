"""VTC-CLS: what the class token looks at in many layers stays (Wang et al., arXiv 2412.05819).

Shape legend: n layers, h heads, N tokens of a crop.
"""

from __future__ import annotations

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class LayerEnsemble(FeatureReducer):
    """Keeps the patches of the largest attention of the tower's class token, added up over layers (VTC-CLS).

    Each crop by its own scores; the authors' code takes those of one crop for all.

    Args:
        ratio: Share of tokens of each crop that stays.
        tower_from: First layer of the vision tower that counts.
        tower_layer: Last one; the paper ends at the last but one.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self, ratio: float = 0.25, tower_from: int = 0, tower_layer: int = -2, positions: Positions = "keep"
    ) -> None:
        self.ratio, self.tower_from, self.tower_layer = share(ratio, name="ratio"), tower_from, tower_layer
        self.positions = positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """The most attended, in their order."""
        assert crop.ensemble is not None
        score_N = crop.ensemble.mean(1).sum(0)
        return Reduction(score_N.topk(kept(len(score_N), self.ratio)).indices.sort().values)
