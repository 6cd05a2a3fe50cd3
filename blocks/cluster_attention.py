"""Attention among tokens of like content: they are sorted by the nearest of a few centres, and cut into groups.

Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", arXiv 2003.05997 (k-means of queries
and keys); Liu et al., "CATANet", arXiv 2503.06896 (sorted tokens in groups that see the next one). Centres are found
anew in every image, since those of a training set move with the noise level; a centre takes no fixed number of
queries, which would leave some with none; and there is one softmax where CATANet adds another over the centres.

Shape legend: B batch, h heads, N tokens, c centres, G groups, g tokens of a group, s groups that a group sees, d
channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import tile_count, to_tiles, tokens_in_tiles


class ClusterAttention(SoftmaxMixer):
    """Softmax attention of each group of tokens, sorted by content, over itself and the groups beside it.

    Args:
        site: Where the mixer stands.
        group: Tokens of a group; one larger than the grid is cut to it.
        neighbours: Groups on either side that a group sees as well.
        cells: Centres along every axis; they start as the mean keys of so many parts of the grid.
        rounds: Of spherical k-means.

    Raises:
        ValueError: A number is out of range.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, group: int = 64, neighbours: int = 1, cells: int = 4, rounds: int = 2) -> None:
        super().__init__(site)
        if group < 1 or neighbours < 0 or cells < 1 or rounds < 0:
            raise ValueError(
                f"group, neighbours, cells and rounds of ClusterAttention are {group!r}, {neighbours!r}, {cells!r} and "
                f"{rounds!r}: give at least 1, 0, 1 and 0"
            )
        self.group, self.neighbours, self.cells, self.rounds = group, neighbours, cells, rounds

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One group of all tokens."""
        return {"group": grid.tokens}

    def flops(self, grid: Grid) -> int:
        """4 G g (s g) h d of attention; 2 N c h d for every assignment to centres, and as much for their means."""
        size = min(self.group, grid.tokens)
        groups = -(-grid.tokens // size)
        seen = 2 * min(self.neighbours, groups - 1) + 1
        centres = tile_count(self._sides(grid), grid)
        means = 2 * grid.tokens * centres * (2 * self.rounds + 1)
        return self.site.heads * self.site.head_dim * (4 * groups * size**2 * seen + means)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention among groups with its log-sum-exp."""
        order_BhN = self._order(k, grid)
        size = min(self.group, grid.tokens)
        groups = -(-grid.tokens // size)
        reach = min(self.neighbours, groups - 1)
        q, k, v = (_grouped(x, order_BhN, size) for x in (q, k, v))
        keys, values = (_with_neighbours(x, reach) for x in (k, v))
        place = torch.arange(groups * size, device=q.device).view(groups, size)
        there_Gk = _with_neighbours((place < grid.tokens)[None, None, ..., None], reach)[0, 0, :, None, :, 0]
        parts = attend(q, keys, values, scale, there_Gk)
        back_BhN = order_BhN.argsort(-1)
        output, lse = (_taken(part.flatten(2, 3), back_BhN) for part in parts)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those of other groups masked."""
        group_BhN = self._order(k, grid).argsort(-1) // min(self.group, grid.tokens)
        apart = (group_BhN[..., None] - group_BhN[..., None, :]).abs()
        return attend(q, k, v, scale, apart <= self.neighbours)

    def _sides(self, grid: Grid) -> tuple[int, ...]:
        return tuple(-(-size // self.cells) for size in grid.sizes)

    @torch.no_grad()
    def _order(self, k: Tensor, grid: Grid) -> Tensor:
        """Tokens sorted by the centre nearest to their key, those of one centre as they stand (B, h, N)."""
        sides = self._sides(grid)
        counts = tokens_in_tiles(sides, grid, k.device).sum(1)
        keys = F.normalize(k.float(), dim=-1)
        centres = F.normalize(to_tiles(keys, sides, grid).sum(3) / counts[:, None], dim=-1)
        for _ in range(self.rounds):
            nearest = (keys @ centres.mT).argmax(-1)
            member = F.one_hot(nearest, centres.shape[2]).to(keys.dtype)
            sums = member.mT @ keys
            centres = torch.where(member.sum(2)[..., None] > 0, F.normalize(sums, dim=-1), centres)
        return (keys @ centres.mT).argmax(-1).argsort(dim=-1, stable=True)


def _taken(x_BhNd: Tensor, index_BhN: Tensor) -> Tensor:
    return x_BhNd.gather(2, index_BhN[..., None].expand(-1, -1, -1, x_BhNd.shape[-1]))


def _grouped(x_BhNd: Tensor, order_BhN: Tensor, size: int) -> Tensor:
    """Tokens in an order, in groups (B, h, G, g, d), zero behind the last token."""
    sorted_ = _taken(x_BhNd, order_BhN)
    return F.pad(sorted_, (0, 0, 0, -sorted_.shape[2] % size)).unflatten(2, (-1, size))


def _with_neighbours(x_BhGgd: Tensor, reach: int) -> Tensor:
    """Each group behind those before it and in front of those after it (B, h, G, s * g, d), zero beyond the ends."""
    padded = F.pad(x_BhGgd, (0, 0, 0, 0, reach, reach))
    groups = x_BhGgd.shape[2]
    return torch.cat([padded.narrow(2, shift, groups) for shift in range(2 * reach + 1)], 3)
