"""Attention to those tiles that matter to a tile of queries, chosen by the queries and keys themselves.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", arXiv 2303.08810 (means of tiles choose);
Gao et al., "SeerAttention", arXiv 2410.13276 (a learned gate, trained towards the teacher's map); Lee et al., "HiP",
arXiv 2406.09827 (from coarse to fine); Zhang et al., "VSA: Faster Video Diffusion with Trainable Sparse Attention",
arXiv 2505.13389, and "SLA: Beyond Sparsity in Diffusion Transformers", arXiv 2509.24006 (the other tiles coarsely, or
by linear attention; here all under one softmax).
Logits have the teacher's scale, that of a head, where the code released with BiFormer takes that of all heads.

Shape legend: B batch, h heads, N tokens, T tiles, t tokens of a tile, n tiles that are kept, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops import coarse_to_fine
from blocks.ops.features import FeatureMap, without_autocast
from blocks.ops.held import Held
from blocks.ops.partial import Partial, attend, merge
from blocks.ops.tiles import (
    checked_tile,
    from_tiles,
    tile_count,
    tile_of_token,
    tile_sides,
    to_tiles,
    tokens_in_tiles,
    whole_tiles,
)

_ROUTERS = ("mean", "gate", "tree")
_TARGETS = 16  # tiles of queries whose whole map a gate is compared with in a pass
_LEAST = 1e-5  # of the mass of all keys: what is left where every tile is kept is rounding


class RoutedAttention(SoftmaxMixer):
    """Softmax attention of each tile's queries over the tokens of the tiles that it keeps.

    Args:
        site: Where the mixer stands.
        tile: Side of a tile in tokens, or one for each of the last axes. A tile larger than the grid is cut to it.
        keep: Tiles that a tile keeps: a number (int) or a share of all (float).
        router: ``mean``: by the products of mean queries and mean keys. ``gate``: by learned maps of mean queries and
            of the largest, smallest and mean keys, which start as the former and learn the teacher's map by an
            auxiliary loss; no other gradient reaches them. ``tree``: as ``mean``, but among large cells of tiles first,
            of which as many as tiles are kept are halved along every axis, again and again.
        rest: What the other tiles are: nothing, or ``pooled``, their mean keys with the log of their count, or
            ``linear``, linear attention over their tokens with a learned feature map.
        gate_loss: Weight of the divergence of a gate from the teacher's map.

    Raises:
        ValueError: A number is out of range, or an option unknown.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        tile: int | Sequence[int] = 8,
        keep: int | float = 0.25,
        router: Literal["mean", "gate", "tree"] = "mean",
        rest: Literal["pooled", "linear"] | None = "pooled",
        gate_loss: float = 1.0,
    ) -> None:
        super().__init__(site)
        self.tile = checked_tile(tile)
        if keep <= 0 or (isinstance(keep, float) and keep > 1):
            raise ValueError(f"keep of RoutedAttention is {keep!r}: give a number of tiles (int) or a share (float)")
        if router not in _ROUTERS or rest not in (None, "pooled", "linear"):
            raise ValueError(
                f"router and rest of RoutedAttention are {router!r} and {rest!r}: give one of "
                f"{', '.join(_ROUTERS)}, and pooled, linear or none"
            )
        if not 0 <= gate_loss < math.inf:
            raise ValueError(f"gate_loss of RoutedAttention is {gate_loss!r}: give 0 or more")
        self.keep, self.router, self.rest, self.gate_loss = keep, router, rest, gate_loss
        heads, dim = site.heads, site.head_dim
        self.query_gate = nn.Parameter(torch.eye(dim).repeat(heads, 1, 1)) if router == "gate" else None
        key_gate = torch.cat([torch.zeros(2 * dim, dim), torch.eye(dim)]).repeat(heads, 1, 1)
        self.key_gate = nn.Parameter(key_gate) if router == "gate" else None
        self.maps = nn.ModuleList(
            FeatureMap("hedgehog", heads=heads, head_dim=dim) for _ in range(2 if rest == "linear" else 0)
        )
        self._held = Held()

    @property
    def has_product_logits(self) -> bool:
        """Those of linear attention are none."""
        return self.rest != "linear"

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """All tiles are kept."""
        return {"keep": 1.0, "rest": None}

    def padded(self, grid: Grid) -> Grid:
        """Whole tiles."""
        return whole_tiles(tile_sides(self.tile, grid), grid)

    def flops(self, grid: Grid) -> int:
        """4 T n t^2 h d of kept tiles, 2 T^2 h d of the choice; pooled rest 4 T^2 t h d, linear 12 N h d (d + 1).

        Of a tree the choice is 2 T n 2^axes h d for each of at most log2 T sizes.
        """
        sides, dim = tile_sides(self.tile, grid), self.site.head_dim
        tiles, tokens = tile_count(sides, grid), math.prod(sides)
        kept = self._kept(tiles)
        looked_at = coarse_to_fine.products(_cells(sides, grid), kept) if self.router == "tree" else tiles
        total = 4 * tiles * kept * tokens**2 * dim + 2 * tiles * looked_at * dim
        total += 8 * tiles * dim**2 * (self.router == "gate")
        total += 4 * tiles**2 * tokens * dim * (self.rest == "pooled")
        total += 4 * tiles * tokens * dim * (3 * dim + 3) * (self.rest == "linear")
        return self.site.heads * total

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over kept tiles and the rest with its log-sum-exp."""
        sides = tile_sides(self.tile, grid)
        there_Tt = tokens_in_tiles(sides, grid, q.device)
        q_tiles, k_tiles, v_tiles = (to_tiles(x, sides, grid) for x in (q, k, v))
        kept_BhTn = self._chosen(q, k, q_tiles, k_tiles, there_Tt, grid, scale)
        keys, values = (_picked(x, kept_BhTn).flatten(3, 4) for x in (k_tiles, v_tiles))
        mask = there_Tt[kept_BhTn].flatten(3)[:, :, :, None]
        parts = [attend(q_tiles, keys, values, scale, mask)]
        if self.rest == "pooled":
            parts.append(self._pooled(q_tiles, k_tiles, v_tiles, there_Tt, kept_BhTn, scale))
        elif self.rest == "linear":
            parts.append(self._linear(q_tiles, k_tiles, v_tiles, there_Tt, kept_BhTn, scale))
        output, lse = (from_tiles(part, sides, grid) for part in (merge(parts) if len(parts) > 1 else parts[0]))
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens with those of other tiles masked, or as means, or weighed by their features."""
        sides = tile_sides(self.tile, grid)
        there_Tt = tokens_in_tiles(sides, grid, q.device)
        kept_BhTn = self._chosen(q, k, to_tiles(q, sides, grid), to_tiles(k, sides, grid), there_Tt, grid, scale)
        is_kept = _is_kept(kept_BhTn)
        tile_N = tile_of_token(sides, grid, q.device)
        seen = is_kept[:, :, tile_N][..., tile_N]
        near = attend(q, k, v, scale, seen)
        if self.rest is None:
            return near
        if self.rest == "pooled":
            same_NN = (tile_N[:, None] == tile_N).to(q.dtype)
            same_NN = same_NN / same_NN.sum(1, keepdim=True)
            return merge([near, attend(q, same_NN @ k, same_NN @ v, scale, ~seen)])
        queries, keys = (each(x.float() * scale**0.5) for each, x in zip(self.maps, (q, k), strict=True))
        weights = (queries @ keys.mT).masked_fill(seen, 0.0)
        mass = weights.sum(-1, keepdim=True)
        lse = mass.masked_fill(mass == 0, 1.0).log().masked_fill(mass == 0, -math.inf)
        return merge([near, ((weights @ v.float() / mass.masked_fill(mass == 0, 1.0)).to(v.dtype), lse)])

    def auxiliary_loss(self) -> Tensor | None:
        """The divergence of the gate from the teacher's map, pooled to tiles, in the latest pass of training."""
        return self._held.value

    def _kept(self, tiles: int) -> int:
        return min(tiles, self.keep if isinstance(self.keep, int) else max(1, round(self.keep * tiles)))

    def _chosen(
        self, q: Tensor, k: Tensor, q_tiles: Tensor, k_tiles: Tensor, there_Tt: Tensor, grid: Grid, scale: float
    ) -> Tensor:
        """Numbers of the tiles that each tile keeps (B, h, T, n)."""
        counts_T1 = there_Tt.sum(1, keepdim=True)
        if self.router == "tree":
            queries, sums = (x.detach().float().sum(3) for x in (q_tiles, k_tiles))
            cells = _cells(tile_sides(self.tile, grid), grid)
            return coarse_to_fine.choose(queries, sums, counts_T1[:, 0], cells, self._kept(cells.tokens))
        q_mean, k_mean = (x.detach().float().sum(3) / counts_T1 for x in (q_tiles, k_tiles))
        if self.query_gate is None or self.key_gate is None:
            logits = q_mean @ k_mean.mT
        else:
            k_tiles, absent = k_tiles.detach().float(), ~there_Tt[..., None]
            highest = k_tiles.masked_fill(absent, -math.inf).amax(3)
            lowest = k_tiles.masked_fill(absent, math.inf).amin(3)
            with torch.set_grad_enabled(self.training), without_autocast(q):  # beside a frozen network, too
                keys = torch.cat([highest, lowest, k_mean], -1) @ self.key_gate.float()
                logits = (q_mean @ self.query_gate.float()) @ keys.mT * scale
            if self.training and self.gate_loss:
                self._held.value = self.gate_loss * self._divergence(logits, q, k, grid, scale)
        return logits.detach().topk(self._kept(logits.shape[-1]), dim=-1).indices

    def _divergence(self, logits_BhTT: Tensor, q: Tensor, k: Tensor, grid: Grid, scale: float) -> Tensor:
        """Of some tiles' rows of the gate from the teacher's map, of which the largest weights of each tile count."""
        sides = tile_sides(self.tile, grid)
        tiles = tile_count(sides, grid)
        some = torch.arange(0, tiles, -(-tiles // _TARGETS), device=q.device)
        with torch.no_grad():
            rows = to_tiles(q.detach(), sides, grid)[:, :, some].float()
            map_ = (rows @ k.detach().float()[:, :, None].mT * scale).softmax(-1)
            there = tokens_in_tiles(sides, grid, q.device)[some][..., None]
            largest = map_.masked_fill(~there, 0.0).amax(3)
            index = tile_of_token(sides, grid, q.device).expand(largest.shape)
            target = torch.zeros(*largest.shape[:-1], tiles, device=q.device).scatter_reduce(-1, index, largest, "amax")
            target = target / target.sum(-1, keepdim=True)
        with torch.enable_grad():
            logs = logits_BhTT[:, :, some].log_softmax(-1)
            return F.kl_div(logs, target, reduction="none").sum(-1).mean()

    def _pooled(
        self, q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, there_Tt: Tensor, kept_BhTn: Tensor, scale: float
    ) -> Partial:
        """The tiles that are not kept, by their means."""
        counts_T1 = there_Tt.sum(1, keepdim=True)
        keys, values = ((x.float().sum(3) / counts_T1).to(x.dtype) for x in (k_tiles, v_tiles))
        bias = counts_T1[:, 0].float().log().masked_fill(_is_kept(kept_BhTn), -math.inf)
        bias = bias[:, :, :, None].expand(*q_tiles.shape[:4], -1).flatten(2, 3)
        output, lse = attend(q_tiles.flatten(2, 3), keys, values, scale, bias)
        sizes = q_tiles.shape[2:4]
        return output.unflatten(2, sizes), lse.unflatten(2, sizes)

    def _linear(
        self, q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, there_Tt: Tensor, kept_BhTn: Tensor, scale: float
    ) -> Partial:
        """The tokens of tiles that are not kept, by linear attention; computed in float32."""
        with without_autocast(q_tiles):
            shape = q_tiles.shape[2:4]
            features: list[Any] = [
                each((x.float() * scale**0.5).flatten(2, 3)).unflatten(2, shape)
                for each, x in zip(self.maps, (q_tiles, k_tiles), strict=True)
            ]
            values = torch.cat([v_tiles.float(), torch.ones_like(v_tiles[..., :1], dtype=torch.float32)], -1)
            states = (features[1] * there_Tt[..., None]).mT @ values
            whole = states.sum(2, keepdim=True)
            sums = features[0] @ (whole - _picked(states, kept_BhTn).sum(3))
            none = sums[..., -1:] <= _LEAST * (features[0] @ whole[..., -1:]).detach()
        mass = sums[..., -1:].masked_fill(none, 1.0)
        output = (sums[..., :-1] / mass).masked_fill(none, 0.0).to(v_tiles.dtype)
        return output, mass.log().masked_fill(none, -math.inf)


def _cells(sides: tuple[int, ...], grid: Grid) -> Grid:
    """The grid of tiles."""
    return Grid(*(-(-size // side) for side, size in zip(sides, grid.sizes, strict=True)))


def _picked(tiles: Tensor, kept_BhTn: Tensor) -> Tensor:
    """Of (B, h, T, x, y) what each tile keeps, (B, h, T, n, x, y)."""
    index = kept_BhTn.flatten(2)[..., None, None].expand(-1, -1, -1, *tiles.shape[3:])
    return tiles.gather(2, index).unflatten(2, kept_BhTn.shape[2:])


def _is_kept(kept_BhTn: Tensor) -> Tensor:
    """Whether a tile (third axis) keeps another (last axis): boolean (B, h, T, T)."""
    tiles = kept_BhTn.shape[2]
    return torch.zeros(*kept_BhTn.shape[:3], tiles, dtype=torch.bool, device=kept_BhTn.device).scatter(
        3, kept_BhTn, True
    )
