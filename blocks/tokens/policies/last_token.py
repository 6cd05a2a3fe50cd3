"""Policies that ask where the prompt's last token looks.

Shape legend: B batch, h heads, T tokens.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blocks.tokens.base import Decision, LayerPolicy, Sight
from blocks.tokens.token_map import TokenMap


class LastTokenPolicy(LayerPolicy):
    """Drops image tokens from a layer on, by how the prompt's last token attends in the layer before."""

    def decide(self, sight: Sight) -> Decision:
        """What is kept, by one row of the attention map."""
        assert sight.before is not None
        return Decision(self.keep(sight.tokens, sight.before.last().weights()[:, :, 0].detach()))

    @abstractmethod
    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        """Which tokens stay (B, T), by attention (B, h, T)."""


def shares(tokens: TokenMap, ratio: float) -> Tensor:
    """How many image tokens of each sample (B) a share is: rounded down, at least one."""
    return (tokens.visual.sum(1).double() * ratio + 1e-9).long().clamp(min=1)
