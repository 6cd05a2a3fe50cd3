"""DivPrune: the subset in which no two tokens are alike (Alvar et al., arXiv 2503.02175).

Shape legend: N tokens of a crop, C channels, K kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class DivPrune(FeatureReducer):
    """Keeps a subset whose smallest cosine distance is large: each next token is the farthest from those chosen.

    The first one is that whose nearest neighbour is farthest. Costs K steps over N distances each, and N * N numbers
    of memory.

    Args:
        ratio: Share of tokens of each crop that stays.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(self, ratio: float = 0.098, positions: Positions = "keep") -> None:
        self.ratio, self.positions = share(ratio, name="ratio"), positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """The max-min subset, in the order of the crop."""
        number = len(crop.features)
        return Reduction(farthest(crop.features.detach(), kept(number, self.ratio)).sort().values)


def farthest(features_NC: Tensor, count: int) -> Tensor:
    """Indices (K) of the greedy max-min subset by cosine distance, in the order of choice."""
    unit_NC = F.normalize(features_NC.float(), dim=-1)
    distance_NN = 1 - unit_NC @ unit_NC.T
    others_NN = distance_NN.clone().fill_diagonal_(float("inf"))
    nearest_N = others_NN.amin(1)  # infinite for a crop of one token
    found = []
    for _ in range(count):
        found.append(nearest_N.argmax())
        reached_N = distance_NN[found[-1]] if len(found) == 1 else nearest_N.minimum(distance_NN[found[-1]])
        nearest_N = reached_N.index_fill(0, torch.stack(found), -1.0)  # never again, even among copies
    return torch.stack(found)
