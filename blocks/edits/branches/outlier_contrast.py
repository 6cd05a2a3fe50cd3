"""DAMRO: what the image's outliers alone would say is taken off (Gong et al., arXiv 2410.04514).

Shape legend: V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import BranchDecoder, between, plausible
from blocks.tokens.base import Crop, FeatureReducer, Reduction


class _Outliers(FeatureReducer):
    """A number of patches of each crop on which the tower's class token lays most attention."""

    def __init__(self, count: int, tower_layer: int) -> None:
        self.count, self.tower_layer = count, tower_layer

    def reduce(self, crop: Crop) -> Reduction:
        """The most attended, in their order."""
        assert crop.attention is not None
        score_N = crop.attention.mean(0)
        return Reduction(score_N.topk(min(self.count, len(score_N))).indices.sort().values)


class OutlierContrast(BranchDecoder):
    """Subtracts what a second pass says that sees only the patches the tower's class token stares at (DAMRO).

    Args:
        alpha: Weight of the difference: 0.5 for yes and no, 1.5 for captions, 2 for MME.
        beta: Words less likely than this share of the likeliest are left out.
        outliers: How many patches of each crop count as outliers.
        tower_layer: Layer of the vision tower.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.1, outliers: int = 10, tower_layer: int = -2) -> None:
        if outliers < 1:
            raise ValueError(f"outliers is from 1; got {outliers}")
        self.alpha, self.beta, self.outliers = alpha, between(beta, 0, 1, name="beta"), outliers
        self.tower_layer = tower_layer

    def reducer(self) -> FeatureReducer:
        """The outliers alone."""
        return _Outliers(self.outliers, self.tower_layer)

    def combine(self, logits: Tensor, second: Tensor) -> Tensor:
        """(1 + alpha) times the model's, less alpha times the second's."""
        return plausible(logits, (1 + self.alpha) * logits - self.alpha * second, beta=self.beta)
