"""Attention among fewer tokens: those most alike are merged in front of it, and get copies of one output behind it.

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604, and Bolya et al., "Token Merging: Your
ViT but Faster", arXiv 2210.09461. It needs no training. Tokens are compared by their keys, as in the latter, which is
what a core sees of them; one token of each cell stays, in the same place for all images, since a drawn one would be
drawn anew where a pass is recomputed.

Shape legend: B batch, h heads, N tokens, S tokens that may be merged, R that are, D others, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import tile_count


class TokenMerging(SoftmaxMixer):
    """Softmax attention after ``ratio`` of the tokens were merged into those most like them.

    Args:
        site: Where the mixer stands.
        ratio: Share of all tokens that are merged, in [0, 1); at most those that do not stay.
        cell: Side of the cells of which the first token stays.
        proportional: Whether a merged token weighs as many keys as it was made of, as in the form for classifiers.

    Raises:
        ValueError: A number is out of range.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, ratio: float = 0.5, cell: int = 2, proportional: bool = True) -> None:
        super().__init__(site)
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio of TokenMerging is {ratio!r}: give a share of the tokens in [0, 1)")
        if cell < 1:
            raise ValueError(f"cell of TokenMerging is {cell!r}: give a side of 1 or more tokens")
        self.ratio, self.cell, self.proportional = ratio, cell, proportional

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Nothing is merged."""
        return {"ratio": 0.0}

    def flops(self, grid: Grid) -> int:
        """4 (N - R)^2 h d of attention, and 2 S D h d of the comparison."""
        merged, may, inner = *self._counts(grid), self.site.heads * self.site.head_dim
        return 4 * (grid.tokens - merged) ** 2 * inner + (2 * may * (grid.tokens - may) * inner if merged else 0)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention among what is left, with its log-sum-exp, copied to the tokens that were merged."""
        merged, _ = self._counts(grid)
        if merged == 0:
            return attend(q, k, v, scale)
        group_BN = self._groups(k, grid, merged)
        groups = grid.tokens - merged
        ones = torch.ones_like(group_BN, dtype=torch.float32)
        sizes_Bg = torch.zeros(len(q), groups, device=q.device).scatter_add(1, group_BN, ones)
        q, k, v = (self._means(x, group_BN, sizes_Bg) for x in (q, k, v))
        parts = attend(q, k, v, scale, sizes_Bg.log()[:, None, None] if self.proportional else None)
        output, lse = (part.gather(2, _along(group_BN, part)) for part in parts)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention among all tokens, each with the means of its group."""
        merged, _ = self._counts(grid)
        group_BN = (
            self._groups(k, grid, merged) if merged else torch.arange(grid.tokens).expand(len(q), -1).to(q.device)
        )
        same_B1NN = (group_BN[:, :, None] == group_BN[:, None])[:, None].to(q.dtype)
        sizes_B1N1 = same_B1NN.sum(-1, keepdim=True)
        q, k, v = (same_B1NN @ x / sizes_B1N1 for x in (q, k, v))
        return attend(q, k, v, scale, None if self.proportional else -sizes_B1N1.mT.log())

    def _counts(self, grid: Grid) -> tuple[int, int]:
        """Tokens that are merged, R, and that may be, S."""
        may = grid.tokens - self._staying(grid)
        return min(int(self.ratio * grid.tokens), may), may

    def _staying(self, grid: Grid) -> int:
        """Tokens that stay, one of each cell."""
        return tile_count((self.cell,) * len(grid.sizes), grid)

    @torch.no_grad()
    def _groups(self, k: Tensor, grid: Grid, merged: int) -> Tensor:
        """The group that each token becomes a part of (B, N): first what stays, then what is not merged."""
        metric_BNC = F.normalize(k.float().transpose(1, 2).flatten(2), dim=-1)
        stays_N = torch.ones(grid.sizes, dtype=torch.bool, device=k.device)
        for axis, size in enumerate(grid.sizes):
            first = torch.arange(size, device=k.device) % self.cell == 0
            stays_N = stays_N & first.view([-1 if each == axis else 1 for each in range(len(grid.sizes))])
        count = self._staying(grid)
        # sorted by hand: stable, and of a size that compiled code knows
        order = stays_N.flatten().int().argsort(dim=0, descending=True, stable=True)
        there_D, rest_S = order[:count], order[count:]
        likeness_BS, partner_BS = (metric_BNC[:, rest_S] @ metric_BNC[:, there_D].mT).max(-1)
        rank_BS = likeness_BS.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)
        group_BS = torch.where(rank_BS < merged, partner_BS, count + rank_BS - merged)
        group_BN = torch.zeros(len(k), grid.tokens, dtype=torch.long, device=k.device)
        group_BN[:, there_D] = torch.arange(count, device=k.device)
        group_BN[:, rest_S] = group_BS
        return group_BN

    def _means(self, x: Tensor, group_BN: Tensor, sizes_Bg: Tensor) -> Tensor:
        sums = torch.zeros(*x.shape[:2], sizes_Bg.shape[1], x.shape[3], device=x.device)
        sums = sums.scatter_add(2, _along(group_BN, x), x.float())
        return (sums / sizes_Bg[:, None, :, None]).to(x.dtype)


def _along(index_BN: Tensor, like: Tensor) -> Tensor:
    """An index of tokens as ``gather`` and ``scatter`` take it."""
    return index_BN[:, None, :, None].expand(-1, like.shape[1], -1, like.shape[3])
