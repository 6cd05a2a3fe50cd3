"""GemFilter: a first layers' pass chooses what the whole model reads (Shi et al., arXiv 2409.17422).

Shape legend: h heads, N tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class GemFilter(FeatureReducer):
    """Keeps the image tokens that go best with the prompt's last token in an early layer of a pass of its own.

    Scores are dot products before the softmax, added up over heads and smoothed over neighbours; the best of all crops
    of a sample stay, and all text. The first pass ends at that layer and leaves nothing behind.

    Args:
        layer: Layer of the decoder; the paper takes 13 of 32.
        ratio: Share of each sample's image tokens that stays.
        smooth: Over how many neighbours of its crop a score is the mean; odd.
        positions: ``renumber`` as in the paper, or ``keep``.
    """

    def __init__(
        self, layer: int = 13, ratio: float = 0.25, smooth: int = 5, positions: Positions = "renumber"
    ) -> None:
        if layer < 0 or smooth < 1 or smooth % 2 == 0:
            raise ValueError(f"layer is from 0 and smooth is odd; got {layer} and {smooth}")
        self.layer, self.ratio, self.smooth = layer, share(ratio, name="ratio"), smooth
        self.decoder_layer, self.positions = layer, positions_of(positions)

    def reduce_sample(self, crops: Sequence[Crop]) -> list[Reduction]:
        """The best of all crops together."""
        scores = [self.scores(crop) for crop in crops]
        all_N = torch.cat(scores)
        stays_N = torch.zeros_like(all_N, dtype=torch.bool)
        stays_N[all_N.topk(kept(len(all_N), self.ratio)).indices] = True
        return [Reduction(part.nonzero()[:, 0]) for part in stays_N.split([len(score) for score in scores])]

    def reduce(self, crop: Crop) -> Reduction:
        """The best of one crop."""
        return self.reduce_sample([crop])[0]

    def scores(self, crop: Crop) -> torch.Tensor:
        """Smoothed scores (N)."""
        assert crop.asked is not None
        score_N = crop.asked.detach().float().sum(0)
        return F.avg_pool1d(score_N[None], self.smooth, 1, self.smooth // 2, count_include_pad=False)[0]
