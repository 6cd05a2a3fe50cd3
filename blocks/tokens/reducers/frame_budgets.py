"""QuoTA: frames that answer the question keep more tokens (Luo et al., arXiv 2503.08689)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, everything, kept, positions_of, share


class FrameBudgets(FeatureReducer):
    """Shares out a number of tokens among the images of a prompt by how much they matter (QuoTA).

    A frame's share goes with the square of its score. The paper asks another model for the probability of yes to
    whether a frame matters; give such scores by ``scores``. Without them a frame's score is how like its tokens are to
    the question's words, this project's stand-in. Frames are thinned out evenly, the third of the paper's ways.

    Args:
        ratio: Share of all image tokens of a sample that stays.
        scores: Of the first, second, ... image of every prompt, 0 to 1.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self, ratio: float = 0.5, scores: Sequence[float] | None = None, positions: Positions = "keep"
    ) -> None:
        if scores is not None and (not scores or min(scores) < 0):
            raise ValueError(f"scores are numbers from 0 on, one an image; got {list(scores)}")
        self.ratio, self.scores = share(ratio, name="ratio"), None if scores is None else list(scores)
        self.positions = positions_of(positions)

    def reduce_sample(self, crops: Sequence[Crop]) -> list[Reduction]:
        """Evenly spaced tokens of every crop, as many as its image may have."""
        found = torch.stack([self._score(crop) for crop in crops])
        sizes = [len(crop.features) for crop in crops]
        counts = budgets(found, sizes, kept(sum(sizes), self.ratio))
        return [
            Reduction((2 * everything(crop)[:count] + 1) * len(crop.features) // (2 * max(count, 1)))
            for crop, count in zip(crops, counts, strict=True)
        ]

    def reduce(self, crop: Crop) -> Reduction:
        """One frame alone."""
        return self.reduce_sample([crop])[0]

    def _score(self, crop: Crop) -> Tensor:
        if self.scores is not None:
            if crop.image >= len(self.scores):
                raise ValueError(f"FrameBudgets has {len(self.scores)} scores; a prompt has {crop.image + 1} images")
            return torch.tensor(self.scores[crop.image])
        assert crop.text is not None
        unit = [torch.nn.functional.normalize(part.detach().float(), dim=-1) for part in (crop.features, crop.text)]
        likeness = (unit[0] @ unit[1].T).amax(0).mean() if len(crop.text) else torch.ones(())
        return ((1 + likeness) / 2).cpu()


def budgets(scores: Tensor, sizes: Sequence[int], total: int) -> list[int]:
    """How many tokens each crop keeps: in proportion to squared scores, at most what it has, ``total`` altogether.

    What a full crop cannot take goes to the others, and remainders to the largest fractions.
    """
    weight = scores.double().square().clamp(min=1e-12).tolist()
    counts, left, free = [0.0] * len(sizes), float(total), set(range(len(sizes)))
    while free and left > 1e-9:
        mass = sum(weight[n] for n in free)
        given = {n: left * weight[n] / mass for n in free}
        full = {n for n in free if counts[n] + given[n] >= sizes[n] - 1e-9}
        for n in full or free:
            left -= min(given[n], sizes[n] - counts[n])
            counts[n] = min(counts[n] + given[n], float(sizes[n]))
        free = free - full if full else set()
    whole = [int(count + 1e-9) for count in counts]
    order = sorted(range(len(sizes)), key=lambda n: (-(counts[n] - whole[n]), n))
    for n in order[: max(total - sum(whole), 0)]:
        whole[n] = min(whole[n] + 1, sizes[n])
    return whole
