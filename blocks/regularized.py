"""What training may add to the loss for the sake of an attention map, around any core mixer.

Guo et al., "Robustifying Token Attention for Vision Transformers", arXiv 2303.11126 (attention diversification: queries
should not all look at the same keys); Zhu et al., "Dual Cross-Attention Learning", arXiv 2205.02151 (pair-wise
cross-attention: keys of another image, which must not matter). Neither changes what the mixer computes.

Shape legend: B batch, h heads, N tokens, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer, TokenMixer
from blocks.merge import Merge
from blocks.ops.held import Held
from blocks.ops.partial import Partial, merge
from blocks.parts import made_parts, plain_part
from blocks.softmax_attention import SoftmaxAttention

_LEAST = 1e-12  # of what is divided by


class Regularized(SoftmaxMixer):
    """A core mixer as it is, with terms of the loss that only training knows.

    Args:
        site: Where the mixer stands.
        part: The core mixer; ``Merge`` as it is by itself if not given.
        diversity: Weight of the mean cosine between each query's weights and the mean of all queries' (ADL). No map
            is held: both are seen through as many random directions as a head has channels, heads together. It costs
            one more pass of the part.
        distractor: Weight of the relative change of the output where keys and values of the batch's next image stand
            beside those of the image's own, under one softmax (DCAL). It costs two more passes of the part; batches of
            one image have none.

    Raises:
        ValueError: A weight is negative, the part is no core mixer, or cannot tell its mass for a distractor.
    """

    def __init__(
        self,
        site: Site,
        *,
        part: Callable[[Site], TokenMixer] | None = None,
        diversity: float = 0.1,
        distractor: float = 0.0,
    ) -> None:
        super().__init__(site)
        self.mixers: Any = made_parts("Regularized", [Merge if part is None else part], [site])
        self.part: Any = plain_part(self.mixers[0])
        if not (0 <= diversity < math.inf and 0 <= distractor < math.inf):
            raise ValueError(
                f"diversity and distractor of Regularized are {diversity!r} and {distractor!r}: give 0 or more"
            )
        if distractor and not self.mixers[0].is_softmax:
            raise ValueError(
                f"part of Regularized is {type(self.mixers[0]).__name__}, which has no partial: a distractor needs the "
                "mass of its keys"
            )
        self.diversity, self.distractor = diversity, distractor
        self._held = Held()

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those of the part."""
        axes: Collection[int] = self.mixers[0].served_axes
        return axes

    @property
    def is_softmax(self) -> bool:
        """Whether the part's weights are one softmax."""
        return bool(self.mixers[0].is_softmax)

    @property
    def has_product_logits(self) -> bool:
        """Whether those of the part are."""
        return bool(self.mixers[0].has_product_logits)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Attention itself."""
        return {"part": plain_part(SoftmaxAttention(site))}

    def padded(self, grid: Grid) -> Grid:
        """That of the part."""
        padded: Grid = self.mixers[0].padded(grid)
        return padded

    def flops(self, grid: Grid) -> int:
        """Those of the part; what training adds is not counted."""
        return int(self.mixers[0].flops(grid))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors."""
        output: Tensor = self.mixers[0](q, k, v, grid, scale)
        self._regularize(q, k, v, grid, scale)
        return output

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Mix, and tell the log-sum-exp of the part.

        Raises:
            ValueError: The part cannot tell.
        """
        if not self.is_softmax:
            raise ValueError(f"part of Regularized is {type(self.mixers[0]).__name__}, which has no partial")
        output, lse = self.mixers[0](q, k, v, grid, scale, mass=True)
        self._regularize(q, k, v, grid, scale)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Any:
        """That of the part."""
        return self.mixers[0].reference(q, k, v, grid, scale)

    def auxiliary_loss(self) -> Tensor | None:
        """Both terms of the latest pass of training; none where nothing that learns takes part."""
        value = self._held.value
        return value if value is not None and value.requires_grad else None

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Let the part start."""
        self.mixers[0].init_from_teacher(weights, samples)

    def _regularize(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> None:
        self._held.value = None
        if not (self.training and torch.is_grad_enabled()):
            return
        terms = []
        if self.diversity:
            terms.append(self.diversity * self._likeness(q, k, grid, scale))
        if self.distractor and len(q) > 1:
            terms.append(self.distractor * self._distraction(q, k, v, grid, scale))
        self._held.value = torch.stack(terms).sum() if terms else None

    def _likeness(self, q: Tensor, k: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mean cosine between the weights of each query and their mean, of the mean map of all heads."""
        drawn = torch.randn(grid.tokens, q.shape[-1], generator=torch.Generator().manual_seed(0)).to(q)
        rows = self.mixers[0](q, k, drawn.expand(k.shape), grid, scale).float().mean(1)
        return F.cosine_similarity(rows, rows.mean(1, keepdim=True), dim=-1, eps=_LEAST).mean()

    def _distraction(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mean square of what another image changes, over that of what was there."""
        own = self.mixers[0](q, k, v, grid, scale, mass=True)
        other = self.mixers[0](q, k.roll(1, 0), v.roll(1, 0), grid, scale, mass=True)
        expected = own[0].detach().float()
        change = merge([own, other])[0].float() - expected
        return change.square().mean() / expected.square().mean().clamp(min=_LEAST)
