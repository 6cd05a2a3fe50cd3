"""Attention of every query to the keys that a cheap estimate of the map finds largest.

Lee et al., "SEA: Sparse Linear Attention with Estimated Attention Mask", arXiv 2310.01777: linear attention estimates a
map of few columns, of which each query keeps the largest; what they hold of its mass weighs their softmax against the
mean of all values. Here the columns are tiles, and their estimate is the linear attention's own mass in them. Wei et
al., "Sparsifiner", arXiv 2303.13755: the estimate is a product of coefficients and a basis. That is cubic in the
tokens, so nothing is saved by it; its learned N x N/8 matrices, which serve one size alone, are means of tiles here.

Shape legend: B batch, h heads, N tokens, R queries of some rows, T tiles, t tokens of a tile, c columns of the
estimate, n columns that are kept, d channels of a head, f features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer
from blocks.ops.features import FeatureMap, without_autocast
from blocks.ops.fit import lowered, told_core
from blocks.ops.held import Held
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import checked_tile, tile_count, tile_of_token, tile_sides, to_tiles, tokens_in_tiles

_ROWS = 128  # queries whose whole map an estimate is compared with in a pass
_LEAST = 1e-20  # of an estimate, whose logarithm is taken


class EstimatedAttention(SoftmaxMixer):
    """Softmax attention of each query over the keys that it keeps, which are gathered for each query by itself.

    Args:
        site: Where the mixer stands.
        estimate: ``linear``, as in SEA: of tiles, by linear attention with learned features. ``basis``, as in
            Sparsifiner: of single tokens, from the weights of tile means for queries and of keys for tile means.
        tile: Side of a tile in tokens, or one for each of the last axes. A tile larger than the grid is cut to it.
        keep: Columns of the estimate that a query keeps: a number (int) or a share of all (float).
        estimate_loss: Weight of the estimate's divergence from the teacher's map, from which alone it learns what to
            keep.

    Raises:
        ValueError: A number is out of range, or an option unknown.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        estimate: Literal["linear", "basis"] = "linear",
        tile: int | Sequence[int] = 4,
        keep: int | float = 0.25,
        estimate_loss: float = 1.0,
    ) -> None:
        super().__init__(site)
        if estimate not in ("linear", "basis"):
            raise ValueError(f"estimate of EstimatedAttention is {estimate!r}: give linear or basis")
        if keep <= 0 or (isinstance(keep, float) and keep > 1):
            raise ValueError(
                f"keep of EstimatedAttention is {keep!r}: give a number of columns (int) or a share (float)"
            )
        if not 0 <= estimate_loss < math.inf:
            raise ValueError(f"estimate_loss of EstimatedAttention is {estimate_loss!r}: give 0 or more")
        self.estimate, self.tile, self.keep, self.estimate_loss = estimate, checked_tile(tile), keep, estimate_loss
        heads, dim = site.heads, site.head_dim
        count = 2 if estimate == "linear" else 0
        self.maps = nn.ModuleList(FeatureMap("hedgehog", heads=heads, head_dim=dim) for _ in range(count))
        self.bases = nn.ParameterList(torch.eye(dim).repeat(heads, 1, 1) for _ in range(2 - count))
        self._held = Held()

    @property
    def has_product_logits(self) -> bool:
        """Not where the mass of all keys is estimated."""
        return self.estimate == "basis"

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """All columns are kept."""
        return {"keep": 1.0}

    def flops(self, grid: Grid) -> int:
        """4 N n t h d of kept keys, and of the estimate 4 N (d + T) h d, or of a basis 2 N h (2 d^2 + 2 T d + N T)."""
        sides, dim, tokens = tile_sides(self.tile, grid), self.site.head_dim, grid.tokens
        tiles = tile_count(sides, grid)
        if self.estimate == "linear":
            own = 4 * tokens * self._kept(tiles) * math.prod(sides) * dim + 4 * tokens * dim * (dim + tiles)
        else:
            own = 4 * tokens * self._kept(tokens) * dim + 2 * tokens * (2 * dim**2 + 2 * tiles * dim + tokens * tiles)
        return self.site.heads * own

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over kept keys with its log-sum-exp; memory grows with what all queries keep."""
        sides = self._columns(grid)
        estimate_BhNc, kept_BhNn = self._chosen(q, k, grid, scale)
        keys, values = (_picked(to_tiles(x, sides, grid), kept_BhNn) for x in (k, v))
        mask = tokens_in_tiles(sides, grid, q.device)[kept_BhNn].flatten(3)
        near = attend(q[..., None, :], keys, values, scale, mask[:, :, :, None])
        return self._with_mean((near[0][..., 0, :], near[1][..., 0, :]), estimate_BhNc, kept_BhNn, v)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those that a query does not keep masked."""
        estimate_BhNc, kept_BhNn = self._chosen(q, k, grid, scale)
        is_kept = torch.zeros_like(estimate_BhNc, dtype=torch.bool).scatter(3, kept_BhNn, True)
        near = attend(q, k, v, scale, is_kept[..., tile_of_token(self._columns(grid), grid, q.device)])
        return self._with_mean(near, estimate_BhNc, kept_BhNn, v)

    def auxiliary_loss(self) -> Tensor | None:
        """The divergence of the estimate from the teacher's map in the latest pass of training."""
        return self._held.value

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit the estimate to the teacher's maps."""
        core = told_core(self, weights, samples)
        if core is not None:
            lowered(list(self.parameters()), lambda: self._divergence(core.q, core.k, None, core.grid, weights.scale))

    def _kept(self, columns: int) -> int:
        return min(columns, self.keep if isinstance(self.keep, int) else max(1, round(self.keep * columns)))

    def _columns(self, grid: Grid) -> tuple[int, ...]:
        """Sides of what a column of the estimate stands for."""
        return tile_sides(self.tile if self.estimate == "linear" else 1, grid)

    def _chosen(self, q: Tensor, k: Tensor, grid: Grid, scale: float) -> tuple[Tensor, Tensor]:
        """The estimated map (B, h, N, c), and the columns that each query keeps (B, h, N, n)."""
        q, k = q.detach(), k.detach()
        with without_autocast(q):
            estimate = self._estimated(q.float(), k.float(), grid, scale)
            if self.training and self.estimate_loss:
                self._held.value = self.estimate_loss * self._divergence(q, k, estimate, grid, scale)
        return estimate, estimate.detach().topk(self._kept(estimate.shape[-1]), dim=-1).indices

    def _estimated(self, q_BhRd: Tensor, k_BhNd: Tensor, grid: Grid, scale: float) -> Tensor:
        """The estimated map (B, h, R, c); its rows sum to one."""
        sides = tile_sides(self.tile, grid)
        if self.estimate == "linear":
            queries, keys = (each(x * scale**0.5) for each, x in zip(self.maps, (q_BhRd, k_BhNd), strict=True))
            masses = queries @ to_tiles(keys, sides, grid).sum(3).mT
            return masses / masses.sum(-1, keepdim=True)
        bases: Any = self.bases
        queries, keys = (x @ each.float() for each, x in zip(bases, (q_BhRd, k_BhNd), strict=True))
        counts_T = tokens_in_tiles(sides, grid, q_BhRd.device).sum(1)
        means = to_tiles(keys, sides, grid).sum(3) / counts_T[:, None]
        coefficients = (queries @ means.mT * scale + counts_T.log()).softmax(-1)
        return coefficients @ (means @ keys.mT * scale).softmax(-1)

    def _divergence(self, q: Tensor, k: Tensor, estimate: Tensor | None, grid: Grid, scale: float) -> Tensor:
        """Of some rows of the estimate from the teacher's map; the estimate is made if it is not given."""
        some = torch.arange(0, grid.tokens, -(-grid.tokens // _ROWS), device=q.device)
        column_N = tile_of_token(self._columns(grid), grid, q.device)
        with torch.no_grad():
            map_ = (q[:, :, some].float() @ k.float().mT * scale).softmax(-1)
            columns = tile_count(self._columns(grid), grid)
            target = torch.zeros(*map_.shape[:-1], columns, device=q.device).index_add(-1, column_N, map_)
        if estimate is None:
            rows = self._estimated(q[:, :, some].float(), k.float(), grid, scale)
        else:
            rows = estimate[:, :, some]
        return F.kl_div(rows.clamp(min=_LEAST).log(), target, reduction="none").sum(-1).mean()

    def _with_mean(self, near: Partial, estimate_BhNc: Tensor, kept_BhNn: Tensor, v: Tensor) -> Partial:
        """What is kept by its estimated share, and the mean of all values by the rest."""
        if self.estimate == "basis":
            return near
        share = estimate_BhNc.gather(3, kept_BhNn).sum(3, keepdim=True)
        output = share * near[0].float() + (1 - share) * v.float().mean(2, keepdim=True)
        return output.to(v.dtype), near[1] - share.log()


def _picked(x_BhTtd: Tensor, kept_BhNn: Tensor) -> Tensor:
    """The tokens of the tiles that each query keeps, (B, h, N, n * t, d)."""
    index = kept_BhNn.flatten(2)[..., None].expand(-1, -1, -1, x_BhTtd.shape[3] * x_BhTtd.shape[4])
    picked = x_BhTtd.flatten(3).gather(2, index)
    return picked.unflatten(-1, x_BhTtd.shape[3:]).unflatten(2, kept_BhNn.shape[2:]).flatten(3, 4)
