"""Attention to the mean of each position in a window over all windows: a few keys, of each part of the image something.

Qin et al., "FaViT: Factorization Vision Transformer", arXiv 2312.08614 (FaSA), for some of the channels; others take
strided keys (``blocks.PooledAttention``), side by side in ``blocks.HeadSplit``. A key stands for as many tokens as it
is the mean of. The published code averages over runs of neighbouring entries, across channels; here every channel is
averaged by itself, and what is cut off at a border is left out where it reflects the border.

Shape legend: B batch, h heads, N tokens, p positions of a window, t tokens of a tile, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer
from blocks.local_attention import checked_sides, on_axes
from blocks.ops.fit import fitted
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import to_tiles, tokens_in_tiles


class FactorizedAttention(SoftmaxMixer):
    """Softmax attention over means of tokens that stand alike in their windows.

    A learned map per head follows the means of keys, and one those of values: identities to begin with, fitted to the
    teacher where it is there.

    Args:
        site: Where the mixer stands.
        window: Positions of a window, or a number for each of the last axes. One larger than the grid is cut to it.
        dilation: Distance of neighbouring positions; tokens between them are left out.

    Raises:
        ValueError: A number is below 1, or there are more than three sides.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, window: int | Sequence[int] = 7, dilation: int = 1) -> None:
        super().__init__(site)
        self.window = checked_sides("window", window)
        if dilation < 1:
            raise ValueError(f"dilation of FactorizedAttention is {dilation!r}: give 1 or more")
        self.dilation = dilation
        self.key_map, self.value_map = (
            nn.Parameter(torch.eye(site.head_dim).repeat(site.heads, 1, 1)) for _ in range(2)
        )

    @property
    def has_product_logits(self) -> bool:
        """Keys and values have maps of their own."""
        return False

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One window that covers the grid."""
        return {"window": list(grid.sizes)}

    def flops(self, grid: Grid) -> int:
        """4 N p h d of attention and 4 p h d^2 of the maps (the means are not counted)."""
        positions, dim = 1, self.site.head_dim
        for span in self._spans(grid):
            positions *= -(-span // self.dilation)
        return 4 * positions * self.site.heads * dim * (grid.tokens + dim)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over means of positions with its log-sum-exp."""
        spans = self._spans(grid)
        counts_t1 = tokens_in_tiles(spans, grid, q.device).sum(0)[:, None]
        keys, values = (self._thinned(to_tiles(x, spans, grid).float().sum(2) / counts_t1, spans) for x in (k, v))
        counts_p1 = self._thinned(counts_t1[None, None], spans)[0, 0]
        return self._attend(q, keys.to(k.dtype), values.to(v.dtype), counts_p1[:, 0], scale)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Means by a matrix that says which tokens stand at which position."""
        places = torch.zeros(grid.tokens, dtype=torch.long, device=q.device)
        inside = torch.ones(grid.tokens, dtype=torch.bool, device=q.device)
        coordinates = torch.meshgrid(*(torch.arange(size, device=q.device) for size in grid.sizes), indexing="ij")
        for coordinate, span in zip(coordinates, self._spans(grid), strict=True):
            within = coordinate.flatten() % span
            places = places * -(-span // self.dilation) + within // self.dilation
            inside = inside & (within % self.dilation == 0)
        member_pN = (torch.arange(int(places.max()) + 1, device=q.device)[:, None] == places) & inside
        counts_p = member_pN.sum(1)
        means_pN = member_pN / counts_p[:, None].to(k.dtype)
        return self._attend(q, means_pN @ k, means_pN @ v, counts_p, scale)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit the maps to the core's outputs on real batches."""
        fitted(self, weights, samples)

    def _attend(self, q: Tensor, k_Bhpd: Tensor, v_Bhpd: Tensor, counts_p: Tensor, scale: float) -> Partial:
        keys, values = k_Bhpd @ self.key_map.to(k_Bhpd.dtype), v_Bhpd @ self.value_map.to(v_Bhpd.dtype)
        return attend(q, keys, values, scale, counts_p.float().log()[None])

    def _spans(self, grid: Grid) -> tuple[int, ...]:
        """Tokens from the first position of a window to its last, along each axis."""
        windows = on_axes(self.window, grid)
        return tuple(
            min((window - 1) * self.dilation + 1, size) for window, size in zip(windows, grid.sizes, strict=True)
        )

    def _thinned(self, x_Bhtd: Tensor, spans: tuple[int, ...]) -> Tensor:
        """The positions of a window among the tokens that it spans, (B, h, p, d)."""
        image = x_Bhtd.unflatten(2, spans)
        for axis in range(len(spans)):
            image = image[(slice(None),) * (2 + axis) + (slice(None, None, self.dilation),)]
        return image.flatten(2, 1 + len(spans))
