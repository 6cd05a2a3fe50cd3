"""Different core mixers for different heads of one site."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer, TokenMixer
from blocks.ops.partial import Partial
from blocks.parts import made_parts, plain_part
from blocks.pooled_attention import PooledAttention
from blocks.softmax_attention import SoftmaxAttention
from blocks.tile_attention import TileAttention

_QUERIES = 256  # of an image, whose entropy is measured


class HeadSplit(SoftmaxMixer):
    """Every part mixes a range of the heads; side by side they mix all.

    It can be merged where every part can. A part is made for a site of its own heads, as wide as the whole one.

    Args:
        site: Where the mixer stands.
        parts: The core mixers; tiles for one half and pooled keys for the other if not given.
        heads: First head of each part and the one behind its last; equal shares, in order, if not given.
        by_entropy: Count heads from the one whose attention is sharpest on samples of the teacher, so that the first
            part gets the sharp ones; without samples as they are.

    Raises:
        ValueError: There is no part, one is no core mixer, or the ranges are not as many as parts or do not hold every
            head once.
    """

    def __init__(
        self,
        site: Site,
        *,
        parts: Sequence[Callable[[Site], TokenMixer]] | None = None,
        heads: Sequence[Sequence[int]] | None = None,
        by_entropy: bool = False,
    ) -> None:
        super().__init__(site)
        parts = (TileAttention, PooledAttention) if parts is None else parts
        self.heads = _checked_ranges(heads, len(parts), site)
        sites = [dataclasses.replace(site, heads=stop - start) for start, stop in self.heads]
        self.mixers: Any = made_parts("HeadSplit", parts, sites)
        self.parts = [plain_part(mixer) for mixer in self.mixers]
        self.by_entropy = by_entropy
        self.order: Tensor | None
        self.register_buffer("order", torch.arange(site.heads) if by_entropy else None)

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those that every part serves."""
        return set.intersection(*(set(mixer.served_axes) for mixer in self.mixers))

    @property
    def is_softmax(self) -> bool:
        """Whether every part is one softmax."""
        return all(mixer.is_softmax for mixer in self.mixers)

    @property
    def has_product_logits(self) -> bool:
        """Whether those of every part are products."""
        return all(mixer.has_product_logits for mixer in self.mixers)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Plain attention for all heads."""
        return {"parts": [plain_part(SoftmaxAttention(site))], "heads": [[0, site.heads]]}

    def flops(self, grid: Grid) -> int:
        """Those of the parts."""
        return sum(mixer.flops(grid) for mixer in self.mixers)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors, each range of heads by its part."""
        q, k, v = (self._sorted(x) for x in (q, k, v))
        mixed = [mixer(q[:, a:b], k[:, a:b], v[:, a:b], grid, scale) for a, b, mixer in self._in_order()]
        return self._unsorted(torch.cat(mixed, 1))

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Mix, and tell the log-sum-exp of each head.

        Raises:
            ValueError: A part cannot tell.
        """
        for position, mixer in enumerate(self.mixers):
            if not mixer.is_softmax:
                raise ValueError(f"parts.{position} of HeadSplit is {type(mixer).__name__}, which has no partial")
        q, k, v = (self._sorted(x) for x in (q, k, v))
        parts = [mixer(q[:, a:b], k[:, a:b], v[:, a:b], grid, scale, mass=True) for a, b, mixer in self._in_order()]
        output, lse = (self._unsorted(torch.cat(each, 1)) for each in zip(*parts, strict=True))
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """The parts' references, head by head."""
        output, lse = torch.empty_like(v), q.new_empty(*q.shape[:-1], 1, dtype=torch.float32)
        for mixer, which in zip(self.mixers, self._heads_of_parts(), strict=True):
            output[:, which], lse[:, which] = mixer.reference(q[:, which], k[:, which], v[:, which], grid, scale)
        return output, lse

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Let every part start from its heads: their rows and columns, and what these heads alone give."""
        if self.order is not None and samples:
            self.order.copy_(_entropies(weights, samples, self.site.heads).argsort())
        for mixer, which in zip(self.mixers, self._heads_of_parts(), strict=True):
            inner = torch.arange(len(weights.query), device=which.device).unflatten(0, (self.site.heads, -1))[which]
            own = _of_heads(weights, inner.flatten().to(weights.query.device))
            given = [_given_by(weights, own, sample, which, self.site.heads) for sample in samples]
            mixer.init_from_teacher(own, given)

    def _heads_of_parts(self) -> list[Tensor]:
        """Numbers of the heads of each part."""
        order = torch.arange(self.site.heads) if self.order is None else self.order
        return [order[start:stop] for start, stop in self.heads]

    def _sorted(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(1, self.order)

    def _unsorted(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(1, self.order.argsort())

    def _in_order(self) -> list[tuple[int, int, Any]]:
        """Ranges and parts in the order of the heads."""
        pairs = zip(self.heads, self.mixers, strict=True)
        return sorted(((a, b, mixer) for (a, b), mixer in pairs), key=lambda each: each[0])


def _checked_ranges(heads: Sequence[Sequence[int]] | None, parts: int, site: Site) -> list[list[int]]:
    if heads is None:
        if parts > site.heads:
            raise ValueError(f"HeadSplit has {parts} parts, and {site.path} has {site.heads} heads: give fewer parts")
        bounds = [part * site.heads // max(parts, 1) for part in range(parts + 1)]
        return [list(pair) for pair in itertools.pairwise(bounds)]
    ranges = [list(each) for each in heads]
    told = f"heads of HeadSplit are {ranges}"
    if len(ranges) != parts:
        raise ValueError(f"{told}, for {parts} parts: give a range for each part")
    if any(len(each) != 2 or not 0 <= each[0] < each[1] for each in ranges):
        raise ValueError(f"{told}: a range is the first head and the one behind the last")
    expected = 0
    for start, stop in sorted(ranges):
        if start < expected:
            raise ValueError(f"{told}: head {start} is in two of the ranges")
        if start > expected:
            raise ValueError(f"{told}: head {expected} is in none of the ranges")
        expected = stop
    if expected != site.heads:
        raise ValueError(
            f"{told}, up to {expected}, but {site.path} has {site.heads} heads: leave heads out for shares"
        )
    return ranges


def _of_heads(weights: AttentionWeights, inner: Tensor) -> AttentionWeights:
    """The projections of some heads; the bias of the output is all of it."""
    return dataclasses.replace(
        weights,
        query=weights.query[inner],
        key=weights.key[inner],
        value=weights.value[inner],
        out=weights.out[:, inner],
        query_bias=None if weights.query_bias is None else weights.query_bias[inner],
        key_bias=None if weights.key_bias is None else weights.key_bias[inner],
        value_bias=None if weights.value_bias is None else weights.value_bias[inner],
    )


def _given_by(
    weights: AttentionWeights, own: AttentionWeights, sample: SiteSamples, which: Tensor, heads: int
) -> SiteSamples:
    """What some of all heads give where the teacher gives a sample; norms may be over all."""
    q, k, v = (x[:, which] for x in weights.projected(sample.inputs.to(weights.query), heads, sample.positions))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=weights.scale).transpose(1, 2).flatten(2)
    return dataclasses.replace(sample, outputs=F.linear(mixed, own.out, own.out_bias).to(sample.outputs))


def _entropies(weights: AttentionWeights, samples: Sequence[SiteSamples], heads: int) -> Tensor:
    """Mean entropy of each head's attention over some queries of every sample, in shares of the largest (h,)."""
    found = []
    for sample in samples:
        q, k, _ = weights.projected(sample.inputs.to(weights.query), heads)
        some = torch.arange(0, q.shape[2], max(1, q.shape[2] // _QUERIES), device=q.device)
        logs = (q[:, :, some].float() @ k.float().mT * weights.scale).log_softmax(-1)
        found.append(-(logs.exp() * logs).sum(-1).mean((0, 2)) / math.log(max(2, q.shape[2])))
    return torch.stack(found).mean(0)
