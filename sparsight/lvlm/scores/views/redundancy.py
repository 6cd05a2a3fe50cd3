"""How alike image tokens are behind each layer.

Shape legend: B samples, T tokens, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F

from sparsight.lvlm.scores.base import LayerPass, SampleMeans, StreamingScore
from sparsight.lvlm.scores.tokens import TokenKinds


class ImageRedundancy(StreamingScore):
    """Mean cosine of pairs of image tokens behind a layer, over samples with two or more."""

    @property
    def name(self) -> str:
        """Name in tables."""
        return "image_redundancy"

    def start(self, num_layers: int) -> None:
        """Begin anew."""
        self.means = SampleMeans(num_layers)

    def begin(self, tokens: TokenKinds) -> None:
        """A new batch is about to pass."""
        self.image_BT = tokens.image_BT

    def observe(self, step: LayerPass) -> None:
        """All pairs at once: the squared norm of the sum of directions, less their own."""
        unit_BTC = F.normalize(step.leaving_BTC.float(), dim=-1) * self.image_BT[..., None]
        count_B = self.image_BT.sum(1)
        pairs_B = count_B * (count_B - 1)
        total_B = unit_BTC.sum(1).square().sum(-1) - count_B
        self.means.add(step.layer, total_B / pairs_B.clamp(min=1), pairs_B > 0)

    def values(self) -> list[float | None]:
        """Means over samples."""
        return self.means.values("two image tokens in a sample")
