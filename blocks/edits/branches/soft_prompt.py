"""LACING's guidance by a soft prompt that stands for no image (Zhao et al., arXiv 2411.14279).

Shape legend: V vocabulary, K tokens of the prompt, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blocks.edits.base import BranchDecoder, between, plausible
from blocks.tokens.base import Crop, FeatureReducer, Reduction
from blocks.tokens.weighted import Shape, Weighted


class _Prompt(FeatureReducer):
    """A soft prompt at the first places of each image, in place of all its tokens."""

    merges = True
    keeps_marks = False

    def __init__(self, owner: SoftPromptGuidance) -> None:
        self.owner = owner

    def reduce(self, crop: Crop) -> Reduction:
        """As many of the prompt's tokens as the crop has places for, in the first of an image."""
        prompt_KC = self.owner.held.weight
        count = min(len(crop.features), len(prompt_KC)) if crop.number == 0 else 0
        places = torch.arange(count, device=crop.features.device)
        return Reduction(places, features=prompt_KC[:count])


class SoftPromptGuidance(Weighted, BranchDecoder):
    """Moves logits away from what a pass says in which a learnt prompt stands for the image (LACING's guidance).

    While it trains there is one pass: with the prompt in place of images for some batches, drawn with ``probability``,
    and with the images for all others. ``ImageGuidance`` is the same without training, and without a prompt.

    Args:
        length: Tokens of the prompt; an image with fewer gets its first ones.
        scale: l_u + scale (l_c - l_u), of logits with the image (c) and with the prompt (u); 1 changes nothing.
        beta: Words less likely than this share of the likeliest are left out; 0 lets all pass.
        probability: How often a batch is read with the prompt while it trains.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(
        self,
        length: int = 16,
        scale: float = 1.5,
        beta: float = 0.0,
        probability: float = 0.1,
        trained: str | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is from 1; got {length}")
        self.length, self.scale, self.beta = length, scale, between(beta, 0, 1, name="beta")
        self.probability, self.trained = between(probability, 0, 1, name="probability"), trained

    def make(self, shape: Shape) -> nn.Module:
        """A prompt of small numbers, as embeddings begin."""
        prompt = nn.Embedding(self.length, shape.channels)
        nn.init.normal_(prompt.weight, std=0.02)
        return prompt

    def reducer(self) -> FeatureReducer:
        """The prompt."""
        return _Prompt(self)

    def passes(self) -> Literal["both", "first", "second"]:
        """One of both."""
        return "second" if float(torch.rand(())) < self.probability else "first"

    def combine(self, logits: Tensor, second: Tensor) -> Tensor:
        """Guided logits."""
        return plausible(logits, second + self.scale * (logits - second), beta=self.beta)
