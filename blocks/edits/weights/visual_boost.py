"""Fixing imbalanced attention: logits of image tokens are raised before the softmax (Arif et al., arXiv 2501.12206).

Shape legend: B batch, Q queries, K keys, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.edits.base import AttentionEdit, Rows, between, layers_from, speaking
from blocks.tokens.attending import masked_softmax
from blocks.tokens.token_map import TokenMap


class VisualBoost(AttentionEdit):
    """Raises logits of image tokens by a share of their size, more so where the vision tower looks.

    For the tokens that words come out of: the last of the prompt, and those of the answer. All heads alike, as the
    authors' code does it; the paper speaks of heads that are treated differently.

    Args:
        strong: Share for the tokens on which the tower's class token lays most attention.
        weak: Share for all other image tokens.
        top: Which part of a sample's image tokens is raised strongly.
        first_layer: The first layer that is changed.
        last_layer: The last one; that of the decoder if not given.
        tower_layer: Layer of the vision tower.
    """

    needs_image = True

    def __init__(
        self,
        strong: float = 0.7,
        weak: float = 0.3,
        top: float = 0.25,
        first_layer: int = 2,
        last_layer: int | None = None,
        tower_layer: int = -2,
    ) -> None:
        self.strong, self.weak, self.top = strong, weak, between(top, 0, 1, name="top")
        self.first_layer, self.last_layer = layers_from(first_layer), last_layer
        self.tower_layer = tower_layer

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed to the last."""
        return self.first_layer <= layer <= (depth - 1 if self.last_layer is None else self.last_layer)

    def rows(self, queries: TokenMap) -> Tensor:
        """Where any sample's words come from."""
        return speaking(queries).any(0).nonzero()[:, 0]

    def weights(self, rows: Rows) -> Tensor:
        """Weights of raised logits."""
        visual = rows.keys.visual
        if rows.seen is None:
            return rows.old
        order = rows.seen.masked_fill(~visual, float("-inf")).argsort(dim=1, descending=True, stable=True).argsort(1)
        count = (visual.sum(1).double() * self.top + 1e-9).long()[:, None]
        share = torch.where(order < count, self.strong, self.weak).masked_fill(~visual, 0.0)
        raised = masked_softmax(rows.logits + share[:, None, None] * rows.logits.abs(), rows.allowed)
        return torch.where(speaking(rows.queries)[:, None, :, None], raised, rows.old)
