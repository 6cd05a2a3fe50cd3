"""A frozen language layer as one more layer of the vision encoder (Pang et al., arXiv 2310.12973).

Shape legend: N tokens of a crop, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.tokens.base import Crop, FeatureReducer, Reduction, everything
from blocks.tokens.weighted import Shape, Weighted


class FrozenBlock(Weighted, FeatureReducer):
    """Passes each crop through a decoder layer of the model itself, between two linear layers that learn.

    The layer works as an encoder's: without positions, and every token sees all of its crop. It stays frozen unless the
    tuning chooses it. Both linear layers begin as nothing but a copy. No token goes; the paper has no decoder behind,
    and takes the layer of another model.

    Args:
        layer: Which decoder layer; from the end below 0, and the paper takes the last one.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(self, layer: int = -1, trained: str | None = None) -> None:
        self.layer, self.trained = layer, trained
        self.encoder_layer = layer

    def make(self, shape: Shape) -> nn.Module:
        """Two copies."""
        linear = nn.ModuleDict({name: nn.Linear(shape.channels, shape.channels) for name in ("before", "behind")})
        for part in linear.values():
            nn.init.eye_(part.weight)  # type: ignore[arg-type]
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        return linear

    def reduce(self, crop: Crop) -> Reduction:
        """All tokens, made anew."""
        assert crop.block is not None
        before_NC: Tensor = self.held["before"](crop.features.float())
        inside_NC = crop.block(before_NC.to(crop.features))
        return Reduction(everything(crop), None, self.held["behind"](inside_NC.to(torch.float32)))
