"""Linear attention of the teacher's queries and keys: feature map, normaliser and decay are options of one class.

Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236 (ELU + 1); Xie et al., "SANA", arXiv 2410.10629 (ReLU in
float32); Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention" (InLine), arXiv 2412.06590
(subtractive normaliser); Zhang et al., "The Hedgehog and the Porcupine", arXiv 2402.04347; "LoLCATs", arXiv 2410.10254
(outside of a window, under one normaliser with it); Fan et al., "Breaking the Low-Rank Dilemma of Linear Attention"
(RALA), arXiv 2411.07635; Sieber et al., "Understanding the differences in Foundation Models" (DSF), arXiv 2405.15731
(learned normaliser); Qin et al., "TransNormerLLM", arXiv 2307.14995, "Lightning Attention-2", arXiv 2401.04658 (decay).

Shape legend: B batch, h heads, N tokens, f features, d channels of a head; T tiles, a queries and c keys of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer, TokenMixer
from blocks.local_attention import checked_local
from blocks.ops.features import MAPS, FeatureMap, without_autocast
from blocks.ops.fit import fitted
from blocks.ops.partial import Partial
from blocks.ops.scan import chunk_of, decayed
from blocks.parts import plain_part

_NORMALISERS = ("sum", "subtractive", "learned", "rms")
_LEAST = 1e-5  # of the mass of all keys: what is left beside a window of all of them is rounding


class KernelAttention(SoftmaxMixer):
    """Weights phi(q) . phi(k), so that all keys meet in one matrix a head, at a cost linear in the tokens.

    With the normaliser ``sum`` a weight is divided by the sum over keys, whose logarithm it tells: it can be merged,
    and stands beside text under one sum. Queries and keys come with rotary embeddings, which most maps undo: those that
    survive are ``hedgehog``, fitted to queries and keys as they are rotated, and ``identity``, whose products depend on
    distances alone.

    Args:
        site: Where the mixer stands.
        feature_map: ``elu``, ``relu``, ``focused``, ``hedgehog`` (fitted to the teacher), or ``identity``.
        width: Features on either side of ``hedgehog``; the channels of a head if not given.
        normaliser: ``sum``; ``subtractive``, by which weights add up to one and may be negative; ``learned``, a
            positive number made of the query; ``rms``, the norm of the output with a learned gain.
        decay: Weights fall with the distance along the sequence of rows (``two`` scans, forward and back), or along
            that of rows and of columns (``four``); a learned rate per head.
        augmented: Keys weigh by how much the mean query asks for them, by a learned share that starts at none.
        without: A local mixer, whose keys a query does not see here; beside that mixer in a ``blocks.Merge``.

    Raises:
        ValueError: An option is unknown, or some exclude each other.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        feature_map: Literal["elu", "relu", "focused", "hedgehog", "identity"] = "hedgehog",
        width: int | None = None,
        normaliser: Literal["sum", "subtractive", "learned", "rms"] = "sum",
        decay: Literal["two", "four"] | None = None,
        augmented: bool = False,
        without: Callable[[Site], TokenMixer] | None = None,
    ) -> None:
        super().__init__(site)
        known = (("feature_map", feature_map, MAPS), ("normaliser", normaliser, _NORMALISERS))
        for name, value, choices in (*known, ("decay", decay, (None, "two", "four"))):
            if value not in choices:
                raise ValueError(f"{name} of KernelAttention is {value!r}: give one of {', '.join(map(str, choices))}")
        if feature_map == "identity" and normaliser in ("sum", "learned"):
            raise ValueError(f"features of identity may be negative, and their sum no normaliser: not {normaliser}")
        if without is not None and (decay is not None or normaliser != "sum"):
            raise ValueError("without of KernelAttention goes with the normaliser sum and without decay")
        if normaliser == "subtractive" and decay is not None:
            raise ValueError("subtractive of KernelAttention takes the mean over all keys: leave decay out")
        self.feature_map, self.width, self.normaliser, self.decay = feature_map, width, normaliser, decay
        self.augmented = augmented
        self.local: Any = None if without is None else checked_local(without, site, "without of KernelAttention")
        self.without: Any = None if self.local is None else plain_part(self.local)
        self.left_out = self.without
        heads, dim = site.heads, site.head_dim
        self.query_map, self.key_map = (
            FeatureMap(feature_map, heads=heads, head_dim=dim, width=width) for _ in range(2)
        )
        self.share = nn.Parameter(torch.zeros(heads)) if augmented else None
        lengths = torch.logspace(math.log10(4), math.log10(256), heads)
        self.rate = nn.Parameter(-lengths.log()) if decay is not None else None
        self.level = nn.Parameter(torch.zeros(heads, dim + 1)) if normaliser == "learned" else None
        self.gain = nn.Parameter(torch.ones(heads, dim)) if normaliser == "rms" else None

    @property
    def is_softmax(self) -> bool:
        """Whether weights are divided by their sum, which is then the mass of the keys."""
        return self.normaliser == "sum"

    @property
    def has_product_logits(self) -> bool:
        """The logarithm of a weight is no product of a query and a key."""
        return False

    def flops(self, grid: Grid) -> int:
        """4 N f (d + 1) of each head, or 4 N f d without the sum; with a decay those of its chunks."""
        heads, dim, features, tokens = self.site.heads, self.site.head_dim, self.query_map.width, grid.tokens
        columns = dim + 1 if self.is_softmax else dim
        total = 4 * tokens * features * columns
        if self.decay is not None:
            size = chunk_of(tokens)
            whole = -(-tokens // size) * size
            scan = 2 * whole * size * (features + columns) + 8 * whole * features * columns
            total = scan if self.decay == "two" else 2 * scan
        if self.local is not None:
            total += 2 * self.local.plan(grid, torch.device("meta")).mask().numel() * (features + columns)
        total += 2 * tokens * features * (self.augmented + (self.normaliser == "subtractive"))
        total += 2 * tokens * dim * (self.normaliser == "learned")
        return heads * total + 2 * self.query_map.flops(tokens, heads, dim)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Linear attention of (B, h, N, d) tensors; computed in float32."""
        if self.is_softmax:
            return self.partial(q, k, v, grid, scale)[0]
        with without_autocast(q):
            features = self._features(q, k, scale)
            return self._normalised(self._sums(*features, v.float(), grid), q, features, v).to(v.dtype)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Linear attention with the logarithm of the sum of its weights.

        Raises:
            ValueError: Weights are not divided by their sum.
        """
        if not self.is_softmax:
            raise ValueError(f"KernelAttention with the normaliser {self.normaliser} has no mass: use sum to merge it")
        with without_autocast(q):
            queries, keys = self._features(q, k, scale)
            values = torch.cat([v.float(), torch.ones_like(v[..., :1], dtype=torch.float32)], -1)
            sums = self._sums(queries, keys, values, grid)
            whole = sums[..., -1:].detach()
            if self.local is not None:
                sums = sums - self._inside(queries, keys, values, grid)
        mass = sums[..., -1:]
        none = mass <= _LEAST * whole
        mass = mass.masked_fill(none, 1.0)
        output = (sums[..., :-1] / mass).masked_fill(none, 0.0)
        return output.to(v.dtype), mass.log().masked_fill(none, -math.inf)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Any:
        """Every weight of every pair of tokens, (N, N)."""
        queries, keys = self._features(q, k, scale)
        weights = queries @ keys.mT
        if self.rate is not None:
            weights = weights * self._decays(grid, weights)
        if self.local is not None:
            weights = weights.masked_fill(self.local.mask(grid, q.device), 0.0)
        if self.is_softmax:
            mass = weights.sum(-1, keepdim=True)
            none = mass == 0
            output = weights @ v.float() / mass.masked_fill(none, 1.0)
            return output.to(v.dtype), mass.masked_fill(none, 1.0).log().masked_fill(none, -math.inf)
        if self.normaliser == "subtractive":
            weights = (weights - weights.mean(-1, keepdim=True) + 1) / grid.tokens
            return _capped(weights @ v.float(), v.dtype).to(v.dtype)
        return self._normalised(weights @ v.float(), q, (queries, keys), v).to(v.dtype)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit what is learned to the core's outputs on real batches; outside of a local mixer, together with it."""
        if self.gain is not None and samples:
            v = weights.projected(samples[0].inputs.to(weights.query), self.site.heads)[2]
            self.gain.copy_(v.float().square().mean((0, 2)).sqrt())
        fitted(self, weights, samples, beside=self.local)

    def _features(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Features of queries and keys; those of products get half of the scale on either side."""
        if self.feature_map in ("identity", "hedgehog"):
            q, k = q.float() * scale**0.5, k.float() * scale**0.5
        queries, keys = self.query_map(q), self.key_map(k)
        if self.share is not None:
            asked = keys @ queries.mean(2)[..., None] * (self.share.float()[:, None, None] * scale)
            keys = keys * (asked.softmax(2) * keys.shape[2])
        return queries, keys

    def _sums(self, queries: Tensor, keys: Tensor, values: Tensor, grid: Grid) -> Tensor:
        """Sum over keys of weight times value (B, h, N, d)."""
        if self.rate is None:
            return queries @ (keys.mT @ values)
        rate = -self.rate.float().exp()
        rows = decayed(queries, keys, values, rate)
        if self.decay == "two":
            return rows
        queries, keys, values = (_by_columns(x, grid) for x in (queries, keys, values))
        columns = decayed(queries, keys, values, rate)
        return (rows + _by_columns(columns, Grid(*reversed(grid.sizes)))) / 2

    def _decays(self, grid: Grid, like: Tensor) -> Tensor:
        """Of every pair of tokens (h, N, N)."""
        assert self.rate is not None
        rate = -self.rate.float().exp()[:, None, None]
        place = torch.arange(grid.tokens, device=like.device)
        rows = (rate * (place[:, None] - place).abs()).exp()
        if self.decay == "two":
            return rows
        place = _by_columns(place[:, None], Grid(*reversed(grid.sizes)))[:, 0]
        return (rows + (rate * (place[:, None] - place).abs()).exp()) / 2

    def _inside(self, queries: Tensor, keys: Tensor, values: Tensor, grid: Grid) -> Tensor:
        """Sum over the keys of the local mixer."""
        plan = self.local.plan(grid, queries.device)
        weights = (plan.queries(queries) @ plan.keys(keys).mT).masked_fill(~plan.mask(), 0.0)
        output: Tensor = plan.tokens(weights @ plan.keys(values))
        return output

    def _normalised(self, sums: Tensor, q: Tensor, features: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        if self.normaliser == "subtractive":
            queries, keys = features
            asked = queries @ keys.mean(2)[..., None]
            return _capped(sums / q.shape[2] + (1 - asked) * v.float().mean(2, keepdim=True), v.dtype)
        if self.level is not None:
            level = self.level.float()
            logit = q.float() @ level[:, :-1, None] + level[:, -1:, None]
            return _capped(sums / (F.softplus(logit) * q.shape[2]), v.dtype)
        assert self.gain is not None
        norm = sums.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return sums * norm * self.gain.float()[:, None]


def _by_columns(x: Tensor, grid: Grid) -> Tensor:
    """Tokens (..., N, d) with the axes of their grid in reversed order."""
    axes = len(grid.sizes)
    image = x.unflatten(-2, grid.sizes)
    lead = image.dim() - axes - 1
    return image.permute(*range(lead), *range(lead + axes - 1, lead - 1, -1), lead + axes).flatten(lead, -2)


def _capped(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Within float16's range, where that is what it becomes."""
    return x.clamp(-65504, 65504) if dtype == torch.float16 else x
