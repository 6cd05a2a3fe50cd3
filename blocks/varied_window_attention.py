"""Attention of each window's queries to keys of a window that is moved and stretched by what the queries are.

Zhang et al., "VSA: Learning Varied-Size Window Attention in Vision Transformers", arXiv 2204.08446. A mixer of queries,
keys and values sees no hidden state, so mean queries of all heads take its place; what would be sampled beyond the
grid is sampled at its border, where the published code has keys of zeros that take part in the softmax.

Shape legend: B batch, h heads, N tokens, T windows, t tokens of a window, d channels of a head, a axes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer
from blocks.ops.features import without_autocast
from blocks.ops.fit import fitted
from blocks.ops.partial import Partial, attend
from blocks.ops.tiles import (
    checked_tile,
    from_tiles,
    tile_count,
    tile_sides,
    to_tiles,
    tokens_in_tiles,
    whole_tiles,
)


class VariedWindowAttention(SoftmaxMixer):
    """Softmax attention inside windows, whose keys and values are interpolated from a window of another size elsewhere.

    Each head of a window has its own; all start as the window itself, and are fitted to the teacher where it is there.

    Args:
        site: Where the mixer stands.
        window: Side of a window in tokens, or one for each of the last axes. One larger than the grid is cut to it.

    Raises:
        ValueError: If a side is below 1, or there are more than three.
    """

    def __init__(self, site: Site, *, window: int | Sequence[int] = 8) -> None:
        super().__init__(site)
        self.window = checked_tile(window)
        self.change = nn.Linear(site.heads * site.head_dim, site.heads * 2 * len(site.grid.sizes))
        for parameter in self.change.parameters():
            nn.init.zeros_(parameter)

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those of the site, since windows move along each."""
        return {len(self.site.grid.sizes)}

    @property
    def has_product_logits(self) -> bool:
        """Queries also decide where keys are."""
        return False

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One window that covers the grid, before it is moved."""
        return {"window": list(grid.sizes)}

    def padded(self, grid: Grid) -> Grid:
        """Whole windows."""
        return whole_tiles(tile_sides(self.window, grid), grid)

    def flops(self, grid: Grid) -> int:
        """4 T t^2 h d of windows, and 4 T h^2 d a for where they are (the interpolation is not counted)."""
        sides, inner = tile_sides(self.window, grid), self.site.heads * self.site.head_dim
        tiles, axes = tile_count(sides, grid), len(self.site.grid.sizes)
        return 4 * tiles * math.prod(sides) ** 2 * inner + 4 * tiles * inner * self.site.heads * axes

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over interpolated keys with its log-sum-exp."""
        sides = tile_sides(self.window, grid)
        keys, values = _sampled(torch.cat([k, v], -1), self._positions(q, sides, grid), grid).chunk(2, -1)
        return self._attend(q, keys, values, sides, grid, scale)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """As ``partial``, with the weight of every token at every position written out."""
        sides = tile_sides(self.window, grid)
        apart = self._positions(q, sides, grid)[..., None, :] - _coordinates(grid, q.device)
        weights_BhTtN = F.relu(1 - apart.abs()).prod(-1)
        keys, values = ((weights_BhTtN @ x.float()[:, :, None]).to(x.dtype) for x in (k, v))
        return self._attend(q, keys, values, sides, grid, scale)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit where windows are to the core's outputs on real batches."""
        fitted(self, weights, samples)

    def _attend(
        self, q: Tensor, k_BhTtd: Tensor, v_BhTtd: Tensor, sides: tuple[int, ...], grid: Grid, scale: float
    ) -> Partial:
        there_T1t = tokens_in_tiles(sides, grid, q.device)[:, None]
        parts = attend(to_tiles(q, sides, grid), k_BhTtd, v_BhTtd, scale, there_T1t)
        output, lse = (from_tiles(part, sides, grid) for part in parts)
        return output, lse

    def _positions(self, q: Tensor, sides: tuple[int, ...], grid: Grid) -> Tensor:
        """Where each key of a window is, in tokens along each axis: (B, h, T, t, a) in float32."""
        axes = len(self.site.grid.sizes)
        if len(sides) != axes:
            raise ValueError(
                f"VariedWindowAttention of {self.site.path} moves windows along {axes} axes, and a grid of "
                f"{len(sides)} came: use WindowAttention there"
            )
        counts_T1 = tokens_in_tiles(sides, grid, q.device).sum(1, keepdim=True)
        means_BTI = (to_tiles(q, sides, grid).float().sum(3) / counts_T1).transpose(1, 2).flatten(2)
        weight, bias = self.change.weight.float(), self.change.bias.float()
        with without_autocast(q):
            change = F.linear(F.leaky_relu(means_BTI), weight, bias).unflatten(-1, (-1, 1, 2, axes)).transpose(1, 2)
        stretch_BhT1a, offset_BhT1a = change.unbind(-2)
        whole = whole_tiles(sides, grid)
        places_Tta = to_tiles(_coordinates(whole, q.device)[None, None], sides, whole)[0, 0]
        side_a, last_a = (torch.tensor(each, device=q.device, dtype=torch.float32) for each in (sides, grid.sizes))
        centre_T1a = places_Tta[:, :1] + (side_a - 1) / 2
        moved = centre_T1a + (places_Tta - centre_T1a) * (1 + stretch_BhT1a) + offset_BhT1a * side_a
        return torch.minimum(moved.clamp(min=0), last_a - 1)


def _coordinates(grid: Grid, device: torch.device) -> Tensor:
    """Place of each token along each axis (N, a), float32."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid.sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _sampled(x_BhNd: Tensor, positions_BhTta: Tensor, grid: Grid) -> Tensor:
    """Tokens interpolated at positions inside the grid (B, h, T, t, d), in float32 where half precision is coarse."""
    axes = len(grid.sizes)
    image = x_BhNd.float().flatten(0, 1).mT.unflatten(-1, grid.sizes)
    last_a = torch.tensor(grid.sizes, device=x_BhNd.device, dtype=torch.float32) - 1
    places = (2 * positions_BhTta / last_a.clamp(min=1) - 1).flatten(0, 1).flip(-1)
    if axes == 1:
        image, places = image[:, :, None], F.pad(places, (0, 1))
    elif axes == 3:
        places = places[:, :, :, None]
    sampled = F.grid_sample(image, places, mode="bilinear", padding_mode="border", align_corners=True)
    sampled = sampled if axes < 3 else sampled[..., 0]
    return sampled.permute(0, 2, 3, 1).unflatten(0, x_BhNd.shape[:2]).to(x_BhNd.dtype)
