"""Heads that answer nothing, to see what they are for.

Shape legend: B batch, Q queries, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks.edits.base import HeadEdit
from blocks.tokens.token_map import TokenMap


class HeadAblation(HeadEdit):
    """Sets what chosen heads answer to zero.

    Args:
        heads: By layer.
    """

    def __init__(self, heads: Mapping[int, Sequence[int]]) -> None:
        self.heads = {int(layer): list(chosen) for layer, chosen in heads.items()}

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        missing = [number for number in self.heads if not 0 <= number < depth]
        if missing:
            raise ValueError(f"HeadAblation names layers {missing}; there are 0 to {depth - 1}")
        return layer in self.heads

    def edit(self, heads: Tensor, layer: int, queries: TokenMap) -> Tensor:
        """Zeros for the chosen heads."""
        chosen, count = self.heads[layer], heads.shape[2]
        if any(not 0 <= head < count for head in chosen):
            raise ValueError(f"HeadAblation names heads {chosen} in layer {layer}; there are 0 to {count - 1}")
        return heads.index_fill(2, torch.tensor(chosen, dtype=torch.long, device=heads.device), 0.0)
