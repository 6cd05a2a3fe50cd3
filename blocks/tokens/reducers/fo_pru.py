"""FoPru: patches, or whole rows of them, to which the vision tower attends (Jiang et al., arXiv 2411.14164).

Shape legend: h heads, N tokens of a crop, R rows.
"""

from __future__ import annotations

from typing import Literal

import torch

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class FoPru(FeatureReducer):
    """Keeps the patches, or the rows of patches, of the largest attention in the vision tower (FoPru).

    Args:
        ratio: Share of tokens of each crop that stays; with rows, share of its rows.
        group: ``rank`` for single tokens, ``row`` for whole rows by the sum of their tokens.
        tower_layer: Layer of the vision tower; the paper takes the last but one.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self,
        ratio: float = 0.25,
        group: Literal["rank", "row"] = "rank",
        tower_layer: int = -2,
        positions: Positions = "keep",
    ) -> None:
        if group not in ("rank", "row"):
            raise ValueError(f"group is {group!r}; allowed are rank, row")
        self.ratio, self.group, self.tower_layer = share(ratio, name="ratio"), group, tower_layer
        self.positions = positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """The best tokens or rows, in their order."""
        assert crop.attention is not None and crop.row is not None
        score_N = crop.attention.mean(0)
        if self.group == "rank":
            return Reduction(score_N.topk(kept(len(score_N), self.ratio)).indices.sort().values)
        names, row_N = crop.row.unique(return_inverse=True)
        score_R = score_N.new_zeros(len(names)).index_add(0, row_N, score_N)
        best_R = score_R.topk(kept(len(names), self.ratio)).indices
        return Reduction(torch.isin(row_N, best_R).nonzero()[:, 0])
