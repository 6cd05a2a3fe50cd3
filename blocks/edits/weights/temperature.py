"""TempScale: sharper attention for long texts (Zhou et al., ACL 2025, "Length-Induced Embedding Collapse")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blocks.edits.base import AttentionFunction, Kernel, within_layers
from blocks.tokens.attending import Attending


class TemperatureScale(AttentionFunction):
    """Divides attention logits by a temperature (Zhou et al., ACL 2025).

    The paper does so in embedding models, against embeddings that become alike as texts grow.

    Args:
        tau: Temperature; below 1 attention is sharper.
        layers: Where; everywhere if not given.
    """

    def __init__(self, tau: float = 0.8, layers: Sequence[int] | None = None) -> None:
        if tau <= 0:
            raise ValueError(f"tau is above 0; got {tau}")
        self.tau, self.layers = tau, None if layers is None else sorted(layers)

    def at(self, layer: int, depth: int) -> bool:
        """At those layers."""
        return within_layers(self.layers, layer)

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """The kernel's, with another scale."""
        return kernel(attending._replace(scaling=attending.scaling / self.tau), value)
