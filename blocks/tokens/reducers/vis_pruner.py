"""VisPruner: important patches, and different ones beside them (Zhang et al., arXiv 2412.01818).

Shape legend: N tokens of a crop, P of a pool, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share

STEP = 8  # most tokens that leave at a time


class VisPruner(FeatureReducer):
    """Keeps the patches on which the tower's class token lays most attention, and of the rest those that differ.

    The rest is thinned out step by step: every second token is compared with those between, and up to eight that are
    most like one of them leave.

    Args:
        ratio: Share of tokens of each crop that stays.
        important: Share of those that are kept for their attention.
        tower_layer: Layer of the vision tower, by its attention.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self, ratio: float = 0.25, important: float = 0.5, tower_layer: int = -2, positions: Positions = "keep"
    ) -> None:
        if not 0 <= important <= 1:
            raise ValueError(f"important is a share of the tokens that stay, 0 to 1; got {important}")
        self.ratio, self.important, self.tower_layer = share(ratio, name="ratio"), important, tower_layer
        self.positions = positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """Important and different tokens, in their order."""
        assert crop.attention is not None
        number = len(crop.features)
        count = kept(number, self.ratio)
        order_N = crop.attention.mean(0).argsort(descending=True)
        important = int(count * self.important)
        pool_P = different(crop.features.detach(), order_N[important:].sort().values, count - important)
        return Reduction(torch.cat([order_N[:important], pool_P]).sort().values)


def different(features_NC: Tensor, pool_P: Tensor, count: int) -> Tensor:
    """What is left of a pool of tokens, ascending, once it is thinned out to ``count``."""
    unit_NC = F.normalize(features_NC.float(), dim=-1)
    if count == 0:
        return pool_P[:0]
    while len(pool_P) > count:
        first, second = pool_P[::2], pool_P[1::2]
        likeness = (unit_NC[first] @ unit_NC[second].T).amax(1)
        leaving = likeness.topk(min(STEP, len(pool_P) - count, len(first))).indices
        stays = torch.ones_like(first, dtype=torch.bool).index_fill(0, leaving, False)
        pool_P = torch.cat([first[stays], second]).sort().values
    return pool_P
