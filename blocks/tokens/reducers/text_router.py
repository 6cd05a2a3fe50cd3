"""SliME's router: patches of local crops that go with the question (Zhang et al., arXiv 2406.08487).

Shape legend: N tokens of a crop, Q words, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, everything, positions_of, share


class TextRouter(FeatureReducer):
    """Keeps the smallest set of each local crop's tokens that holds a share of likeness to the question (SliME).

    Likeness of a token is the sum of its cosines with the question's words, and a softmax makes shares of it. The first
    crop, which shows the whole image, stays as it is where there are others. ``QueryCompressor`` has the compressors
    that the paper trains before and beside the router.

    Args:
        mass: Share of likeness that stays.
        temperature: Of the softmax.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(self, mass: float = 0.75, temperature: float = 1.0, positions: Positions = "keep") -> None:
        if temperature <= 0:
            raise ValueError(f"temperature is above 0; got {temperature}")
        self.mass, self.temperature, self.positions = share(mass, name="mass"), temperature, positions_of(positions)

    def reduce_sample(self, crops: Sequence[Crop]) -> list[Reduction]:
        """Whole images stay beside their crops."""
        cropped = {crop.image for crop in crops if crop.number > 0}
        return [
            Reduction(everything(crop)) if crop.number == 0 and crop.image in cropped else self.reduce(crop)
            for crop in crops
        ]

    def reduce(self, crop: Crop) -> Reduction:
        """The likeliest until they hold the share, in their order."""
        assert crop.text is not None
        features_NC, text_QC = (F.normalize(part.detach().float(), dim=-1) for part in (crop.features, crop.text))
        likeness_N = (features_NC @ text_QC.T).sum(1)
        weight_N, order_N = (likeness_N / self.temperature).softmax(0).sort(descending=True, stable=True)
        before_N = weight_N.cumsum(0) - weight_N
        return Reduction(order_N[before_N < self.mass].sort().values)
