"""FasterVLM: what the vision tower's class token looks at stays (Zhang et al., arXiv 2412.01818v1).

Shape legend: h heads, N tokens of a crop.
"""

from __future__ import annotations

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class FasterVLM(FeatureReducer):
    """Keeps the patches on which the vision tower's class token lays most attention, mean over heads.

    A tower without a class token gives the mean attention of all patches instead. Crops are reduced one by one.

    Args:
        ratio: Share of tokens of each crop that stays.
        tower_layer: Layer of the vision tower; the paper takes the last but one.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(self, ratio: float = 0.25, tower_layer: int = -2, positions: Positions = "keep") -> None:
        self.ratio, self.tower_layer = share(ratio, name="ratio"), tower_layer
        self.positions = positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """The most attended, in their order."""
        assert crop.attention is not None
        score_N = crop.attention.mean(0)
        return Reduction(score_N.topk(kept(len(score_N), self.ratio)).indices.sort().values)
