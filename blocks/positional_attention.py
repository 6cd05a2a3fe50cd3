"""Attention by position alone, beside attention by content with a gate for each head: a probe of how local a head is.

d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", arXiv 2103.10697
(gated positional self-attention). Its logits are quadratic in the distance along each axis, without cross terms, so
their softmax is one along each axis after the other. Values are the teacher's; the published start has identities.

Shape legend: B batch, h heads, N tokens, L tokens along an axis, d channels of a head, a axes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, CoreMixer, Grid, Site, SiteSamples
from blocks.ops.fit import lowered, told_core

_START = -2.0  # of a gate's logit and of a curvature's logarithm, without samples
_SHARES = (0.01, 0.99)  # between which a gate starts, so that it can still move


class PositionalAttention(CoreMixer):
    """Every head looks at one place relative to the query, more or less sharply.

    On samples of the teacher places are fitted to its outputs, and a gate starts at the share of a head's output that
    they explain: those near 1 could become convolutions. ``locality`` tells it. With the gate open, the error of
    `sparsight analyze` is such a probe of a whole site.

    Args:
        site: Where the mixer stands.
        gate: ``learned``: a share of each head beside attention by content; ``open``: positions alone, which costs
            little; ``closed``: attention by content alone.

    Raises:
        ValueError: The gate is none of these.
    """

    def __init__(self, site: Site, *, gate: Literal["learned", "open", "closed"] = "learned") -> None:
        super().__init__(site)
        if gate not in ("learned", "open", "closed"):
            raise ValueError(f"gate of PositionalAttention is {gate!r}: give learned, open or closed")
        self.gate = gate
        shape = (site.heads, len(site.grid.sizes))
        self.place = None if gate == "closed" else nn.Parameter(torch.zeros(shape))
        self.curvature = None if gate == "closed" else nn.Parameter(torch.full(shape, _START))
        self.share = nn.Parameter(torch.full((site.heads,), _START)) if gate == "learned" else None

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those of the site, since places are on its axes."""
        return (1, 2, 3) if self.gate == "closed" else {len(self.site.grid.sizes)}

    @property
    def locality(self) -> Tensor:
        """The share of positions in each head (h,)."""
        if self.share is not None:
            return self.share.float().sigmoid()
        return torch.full((self.site.heads,), float(self.gate == "open"))

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """The gate is closed."""
        return {"gate": "closed"}

    def flops(self, grid: Grid) -> int:
        """2 N L h d for each axis of positions, and 4 N^2 h d of content unless the gate is open."""
        inner = self.site.heads * self.site.head_dim
        positions = 0 if self.gate == "closed" else 2 * grid.tokens * sum(grid.sizes) * inner
        return positions + (0 if self.gate == "open" else 4 * grid.tokens**2 * inner)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors."""
        if self.gate == "open":
            return self._by_position(v, grid)
        return self._gated(F.scaled_dot_product_attention(q, k, v, scale=scale), v, grid)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Both matrices of weights, written out."""
        by_content = (q @ k.mT * scale).softmax(-1)
        if self.gate == "closed":
            return by_content @ v
        place_hNN = None
        axes = torch.meshgrid(*(torch.arange(size, device=v.device) for size in grid.sizes), indexing="ij")
        for axis, own in enumerate(coordinate.flatten() for coordinate in axes):
            logits = self._logits(own, axis)
            place_hNN = logits if place_hNN is None else place_hNN + logits
        assert place_hNN is not None
        by_position = place_hNN.softmax(-1).to(v.dtype)
        if self.gate == "open":
            return by_position @ v
        share = self.locality[:, None, None].to(v.dtype)
        return ((1 - share) * by_content + share * by_position) @ v

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Fit the places to the core's outputs on real batches, and open the gate as far as they explain them."""
        core = told_core(self, weights, samples)
        if core is not None:
            self.fit_places(core.v, core.output, core.grid)

    @torch.no_grad()
    def fit_places(self, v: Tensor, output: Tensor, grid: Grid) -> None:
        """Fit the places to a core's outputs, both (B, h, N, d), and open the gate as far as they explain them."""
        if self.place is None or self.curvature is None:
            return
        power_h = output.square().mean((0, 2, 3)).clamp(min=1e-12)

        def errors() -> Tensor:
            return (self._by_position(v, grid) - output).square().mean((0, 2, 3)) / power_h

        lowered([self.place, self.curvature], lambda: errors().mean())
        if self.share is not None:
            self.share.copy_((1 - errors()).clamp(*_SHARES).logit())

    def _gated(self, by_content: Tensor, v: Tensor, grid: Grid) -> Tensor:
        if self.gate == "closed":
            return by_content
        return by_content + self.locality[:, None, None].to(v.dtype) * (self._by_position(v, grid) - by_content)

    def _by_position(self, v: Tensor, grid: Grid) -> Tensor:
        """Values where each head looks, (B, h, N, d): one axis after the other."""
        if len(grid.sizes) != len(self.site.grid.sizes):
            raise ValueError(
                f"PositionalAttention of {self.site.path} has places on {len(self.site.grid.sizes)} axes, and a grid "
                f"of {len(grid.sizes)} came"
            )
        image = v.unflatten(2, grid.sizes)
        for axis, size in enumerate(grid.sizes):
            weights_hLL = self._logits(torch.arange(size, device=v.device), axis).softmax(-1).to(v.dtype)
            weights = weights_hLL.view(-1, *(1 for _ in grid.sizes[1:]), size, size)
            image = (weights @ image.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
        return image.flatten(2, 1 + len(grid.sizes))

    def _logits(self, position_L: Tensor, axis: int) -> Tensor:
        """Of each head, of queries (second axis) and keys (third axis) along an axis of the grid: (h, L, L)."""
        assert self.place is not None and self.curvature is not None
        apart = (position_L - position_L[:, None])[None].float()
        place, curvature = (each[:, axis, None, None].float() for each in (self.place, self.curvature))
        return -curvature.clamp(max=math.log(1e4)).exp() * (apart - place).square()
