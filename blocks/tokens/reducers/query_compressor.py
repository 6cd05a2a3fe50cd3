"""SliME's compressors: queries gather local crops, a mixture of experts keeps the whole image (arXiv 2406.08487).

Shape legend: N tokens of a crop, M queries, Q words, C channels, h heads, d channels of a head, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, positions_of, share
from blocks.tokens.weighted import Shape, Weighted

FREQUENCIES = 8


class QueryCompressor(Weighted, FeatureReducer):
    """Each local crop becomes a small grid of tokens, which queries gather by attention and a router thins out (SliME).

    The crop that shows the whole image, or an image without crops, keeps all tokens: each becomes a mixture of itself
    and of what a query of its place gathers, by a gate that reads their mean. Marks at the ends of rows go. Queries are
    made of places in the image, so that crops of any shape are served. The router is ``TextRouter``'s, over what the
    queries gathered. While it trains, gate and router see noise; the gate's is scaled by weights of its own, where the
    authors' code takes those of the gate. The paper compresses before the projector, here it is done behind it.

    Args:
        side: Rows and columns of the grid of a local crop.
        mass: Share of likeness to the question that stays of it; 1 keeps all.
        temperature: Of the softmax over likeness.
        noise: Of the router, while it trains.
        positions: ``keep``, where tokens stand evenly over their crop, or ``renumber``.
        trained: File of trained weights, or a folder with it.
    """

    merges = True
    keeps_marks = False

    def __init__(
        self,
        side: int = 12,
        mass: float = 0.75,
        temperature: float = 1.0,
        noise: float = 0.1,
        positions: Positions = "keep",
        trained: str | None = None,
    ) -> None:
        if side < 1 or temperature <= 0 or noise < 0:
            raise ValueError(
                f"side is from 1, temperature above 0 and noise from 0; got {side}, {temperature} and {noise}"
            )
        self.side, self.mass, self.temperature, self.noise = side, share(mass, name="mass"), temperature, noise
        self.positions, self.trained = positions_of(positions), trained

    def make(self, shape: Shape) -> nn.Module:
        """Queries for crops and whole images, and the gate between experts."""
        return _Compressors(shape)

    def reduce_sample(self, crops: Sequence[Crop]) -> list[Reduction]:
        """Whole images are mixed, their crops compressed."""
        return [self.whole(crop) if crop.number == 0 else self.reduce(crop) for crop in crops]

    def reduce(self, crop: Crop) -> Reduction:
        """A local crop."""
        assert crop.text is not None
        held = self.held
        places_M = spread(crop, self.side)
        made_MC, weights_MN = gathered(held.local, crop, places_M)
        made_NC, text_QC = (F.normalize(part.detach().float(), dim=-1) for part in (made_MC, crop.text))
        likeness_M = (made_NC @ text_QC.T).sum(1)
        if crop.learns:
            likeness_M = likeness_M + self.noise * torch.randn_like(likeness_M)
        weight_M, order_M = (likeness_M / self.temperature).softmax(0).sort(descending=True, stable=True)
        before_M = weight_M.cumsum(0) - weight_M
        kept_K = order_M[before_M < self.mass].sort().values
        return Reduction(places_M[kept_K], weights_MN[kept_K].detach(), made_MC[kept_K])

    def whole(self, crop: Crop) -> Reduction:
        """An image that shows everything."""
        held, features_NC = self.held, crop.features.float()
        every_N = torch.arange(len(features_NC), device=features_NC.device)
        made_NC, _ = gathered(held.whole, crop, every_N)
        mean_C = features_NC.mean(0)
        said_2 = held.gate(mean_C)
        if crop.learns:
            said_2 = said_2 + torch.randn_like(said_2) * F.softplus(held.gate_noise(mean_C))
        share_2 = said_2.softmax(0)
        return Reduction(every_N, None, share_2[0] * features_NC + share_2[1] * made_NC)


class _Gathering(nn.Module):
    """Attention of queries, made of places, over the tokens of a crop, in ``heads`` heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Linear(4 * FREQUENCIES, channels)
        self.norm = nn.LayerNorm(channels)
        self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))


class _Compressors(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        heads = shape.heads if shape.channels % shape.heads == 0 else 1
        self.local, self.whole = _Gathering(shape.channels, heads), _Gathering(shape.channels, heads)
        self.gate, self.gate_noise = (nn.Linear(shape.channels, 2, bias=False) for _ in range(2))


def gathered(module: Any, crop: Crop, places_M: Tensor) -> tuple[Tensor, Tensor]:
    """What queries of some places gather (M, C), and their weights (M, N), mean over heads; both float32."""
    features_NC = module.norm(crop.features.float())
    code_N = module.place(code_of(crop))
    count, heads = len(places_M), module.heads
    query_hMd = code_N[places_M].unflatten(1, (heads, -1)).transpose(0, 1)
    key_hNd = (module.key(features_NC) + code_N).unflatten(1, (heads, -1)).transpose(0, 1)
    value_hNd = module.value(features_NC).unflatten(1, (heads, -1)).transpose(0, 1)
    weights_hMN = (query_hMd @ key_hNd.transpose(1, 2) / query_hMd.shape[-1] ** 0.5).softmax(-1)
    out_MC = (weights_hMN @ value_hNd).transpose(0, 1).reshape(count, -1)
    return module.out(out_MC), weights_hMN.mean(0)


def code_of(crop: Crop) -> Tensor:
    """Sines and cosines (N, 4 F) of where tokens stand in their crop, as shares of its height and width."""
    assert crop.row is not None and crop.column is not None
    parts = []
    for place in (crop.row, crop.column):
        start, stop = place.min(), place.max() + 1
        share_N = (place - start + 0.5) / (stop - start)
        angles = share_N[:, None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=place.device)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1).float()


def spread(crop: Crop, side: int) -> Tensor:
    """Tokens (M) that stand nearest to the middles of a grid's cells over a crop, at most ``side`` x ``side``."""
    assert crop.row is not None and crop.column is not None
    kept = torch.ones(len(crop.features), dtype=torch.bool, device=crop.features.device)
    for place in (crop.row, crop.column):
        lines = place.unique()
        count = min(side, len(lines))
        middles = (2 * torch.arange(count, device=place.device) + 1) * len(lines) // (2 * count)
        kept &= torch.isin(place, lines[middles])
    return kept.nonzero()[:, 0]
