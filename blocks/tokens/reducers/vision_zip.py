"""VisionZip: dominant tokens stay, the rest is merged to few (Yang et al., arXiv 2412.04467).

Shape legend: h heads, N tokens of a crop, D dominant ones, R the rest, M merged ones, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class VisionZip(FeatureReducer):
    """Keeps dominant tokens, and merges the others into evenly spaced ones of them by the likeness of their keys.

    Dominant are those on which the tower's class token lays most attention. Each of the others is assigned to the
    target whose key, mean over heads, is most like its own; a target becomes itself plus the mean of what is assigned
    to it. Merging happens where all families have their tokens, behind the projector; the paper merges before it, and
    passes the class token on too, which stock models do not.

    Args:
        dominant: Share of tokens of each crop that stays as it is; the defaults are the 54 and 10 of 576 of the paper.
        contextual: Share of tokens that the rest is merged into; 0 drops the rest.
        tower_layer: Layer of the vision tower; the paper takes the last but one.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    merges = True

    def __init__(
        self,
        dominant: float = 0.094,
        contextual: float = 0.017,
        tower_layer: int = -2,
        positions: Positions = "keep",
    ) -> None:
        self.dominant, self.tower_layer = share(dominant, name="dominant"), tower_layer
        if not 0 <= contextual <= 1:
            raise ValueError(f"contextual is a share of image tokens, 0 to 1; got {contextual}")
        self.contextual, self.positions = contextual, positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """Dominant tokens and targets in the order of the crop, with what each becomes."""
        assert crop.attention is not None and crop.keys is not None
        number = len(crop.features)
        dominant_D = crop.attention.sum(0).topk(kept(number, self.dominant)).indices.sort().values
        is_rest_N = torch.ones(number, dtype=torch.bool, device=dominant_D.device).index_fill(0, dominant_D, False)
        rest_R = is_rest_N.nonzero()[:, 0]
        count = min(kept(number, self.contextual) if self.contextual else 0, len(rest_R))
        weights_NN = torch.eye(number, device=dominant_D.device)
        at_M = torch.arange(count, device=rest_R.device) * len(rest_R) // max(count, 1)
        if count:
            weights_NN[rest_R[at_M]] += assigned(crop.keys.mean(0)[rest_R], at_M, rest_R, number)
        keep = torch.cat([dominant_D, rest_R[at_M]]).sort().values
        return Reduction(keep, weights_NN[keep])


def assigned(keys_Rd: Tensor, at_M: Tensor, rest_R: Tensor, number: int) -> Tensor:
    """For each target the mean over the tokens assigned to it, as weights (M, N); targets are assigned nowhere."""
    unit_Rd = F.normalize(keys_Rd.float(), dim=-1)
    target_R = (unit_Rd @ unit_Rd[at_M].T).argmax(1)
    is_other_R = torch.ones_like(target_R, dtype=torch.bool).index_fill(0, at_M, False)
    weights_MN = torch.zeros(len(at_M), number, device=keys_Rd.device)
    weights_MN[target_R[is_other_R], rest_R[is_other_R]] = 1
    return weights_MN / weights_MN.sum(1, keepdim=True).clamp(min=1)
