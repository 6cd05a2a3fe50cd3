"""VMTC: primary tokens stay, the others are clustered and merged (Yu et al., arXiv 2411.15453).

Shape legend: N tokens of a crop, P primary ones, R the rest, M clusters, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share
from blocks.tokens.reducers.div_prune import farthest


class ClusterMerge(FeatureReducer):
    """Keeps the patches that the vision tower attends to most, and merges each cluster of the others to one (VMTC).

    Clusters are those of K-means on features, begun at tokens that are far apart, so that nothing is left to chance. A
    cluster becomes the mean of its tokens, in the place of the one nearest to it.

    Args:
        primary: Share of tokens of each crop that stays as it is.
        clusters: Share of tokens that the rest is merged into.
        rounds: Most rounds of K-means.
        tower_layer: Layer of the vision tower.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    merges = True

    def __init__(
        self,
        primary: float = 0.125,
        clusters: float = 0.125,
        rounds: int = 10,
        tower_layer: int = -2,
        positions: Positions = "keep",
    ) -> None:
        self.primary, self.clusters = share(primary, name="primary"), share(clusters, name="clusters")
        self.rounds, self.tower_layer, self.positions = rounds, tower_layer, positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """Primary tokens and clusters in the order of the crop, with what each becomes."""
        assert crop.attention is not None
        number, features_NC = len(crop.features), crop.features.detach().float()
        primary_P = crop.attention.mean(0).topk(kept(number, self.primary)).indices
        is_rest_N = torch.ones(number, dtype=torch.bool, device=primary_P.device).index_fill(0, primary_P, False)
        rest_R = is_rest_N.nonzero()[:, 0]
        weights_NN = torch.eye(number, device=primary_P.device)
        keep_N = ~is_rest_N
        if len(rest_R):
            cluster_R = k_means(features_NC[rest_R], min(kept(number, self.clusters), len(rest_R)), self.rounds)
            for name in cluster_R.unique():
                members = rest_R[cluster_R == name]
                apart = (features_NC[members] - features_NC[members].mean(0)).norm(dim=-1)
                nearest = members[apart.argmin()]
                keep_N[nearest] = True
                weights_NN[nearest] = torch.zeros_like(weights_NN[0]).index_fill(0, members, 1 / len(members))
        keep = keep_N.nonzero()[:, 0]
        return Reduction(keep, weights_NN[keep])


def k_means(features_RC: Tensor, count: int, rounds: int) -> Tensor:
    """Number of each token's cluster (R)."""
    centers_MC = features_RC[farthest(features_RC, count)]
    cluster_R = torch.cdist(features_RC, centers_MC).argmin(1)
    for _ in range(rounds):
        member_MR = torch.nn.functional.one_hot(cluster_R, count).T.to(features_RC)
        size_M = member_MR.sum(1, keepdim=True)
        centers_MC = torch.where(size_M > 0, member_MR @ features_RC / size_M.clamp(min=1), centers_MC)
        moved_R = torch.cdist(features_RC, centers_MC).argmin(1)
        if torch.equal(moved_R, cluster_R):
            break
        cluster_R = moved_R
    return cluster_R
