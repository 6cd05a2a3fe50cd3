"""Controls that look at nothing: a method that does not beat them at an equal number of tokens has found nothing."""

from __future__ import annotations

import torch

from blocks.tokens.base import Crop, FeatureReducer, Positions, Reduction, kept, positions_of, share


class RandomTokens(FeatureReducer):
    """Control: keeps image tokens drawn by chance.

    The draw depends on the prompt and the seed alone: it is the same in any batch, and with and without a cache.

    Args:
        ratio: Share of tokens of each crop that stays.
        seed: Of the draw.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(self, ratio: float = 0.5, seed: int = 0, positions: Positions = "keep") -> None:
        self.ratio, self.seed, self.positions = share(ratio, name="ratio"), seed, positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """Draw without replacement, and sort."""
        drawn = torch.Generator().manual_seed((crop.seed + 1_000_003 * self.seed) % 2**63)
        number = len(crop.features)
        keep = torch.randperm(number, generator=drawn)[: kept(number, self.ratio)]
        return Reduction(keep.sort().values.to(crop.features.device))


class UniformTokens(FeatureReducer):
    """Control: keeps evenly spaced image tokens.

    Args:
        ratio: Share of tokens of each crop that stays.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(self, ratio: float = 0.5, positions: Positions = "keep") -> None:
        self.ratio, self.positions = share(ratio, name="ratio"), positions_of(positions)

    def reduce(self, crop: Crop) -> Reduction:
        """The middles of as many equal parts as tokens stay."""
        number = len(crop.features)
        count = kept(number, self.ratio)
        return Reduction((2 * torch.arange(count, device=crop.features.device) + 1) * number // (2 * count))


class WithoutImages(FeatureReducer):
    """Control: no token of any image."""

    keeps_marks = False

    def reduce(self, crop: Crop) -> Reduction:
        """Nothing."""
        return Reduction(torch.arange(0, device=crop.features.device))
