"""Attention that sinks draw goes back to the image (Kang et al., arXiv 2503.03321).

Shape legend: B batch, Q queries, K keys, h heads, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.edits.base import AttentionEdit, Rows, layers_from, words_after_images
from blocks.tokens.token_map import QUESTION, TokenMap


class VisualAttentionRedistribution(AttentionEdit):
    """Heads that look at the image give a part of what their sinks draw to its other tokens (VAR).

    A token is a sink where one of a few channels is large against the root mean square of its state. A head is changed
    for a query if at least ``image`` of the query's attention lies on the image, and at least ``rho`` of that on no
    sink. Sinks, of image and text, keep ``share`` of their attention; the rest is shared out in proportion. Queries
    are text after the first image; the last layer is left as it is. Rows go on to sum to 1.

    Args:
        channels: In which sinks of this model are large: 1415 and 2533 for LLaMA2-7B, 2100 and 4743 for LLaMA2-13B.
        tau: How many times the root mean square a sink reaches.
        rho: The paper's: 0.8, 0.5 against hallucinations, 0.9 for tasks about what is seen. The authors' code calls
            1 - rho by this name.
        image: Least attention on the image.
        share: The paper's p.
        first_layer: The first layer that is changed.
    """

    needs_image = True

    def __init__(
        self,
        channels: Sequence[int],
        tau: float = 20.0,
        rho: float = 0.5,
        image: float = 0.2,
        share: float = 0.6,
        first_layer: int = 2,
    ) -> None:
        if not channels or min(channels) < 0:
            raise ValueError(f"channels are {list(channels)}: name those in which sinks of this model are large")
        self.channels, self.tau, self.rho, self.image, self.share = list(channels), tau, rho, image, share
        self.first_layer = layers_from(first_layer)

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed to the last but one."""
        return self.first_layer <= layer < depth - 1

    def mark(self, hidden: Tensor) -> Tensor:
        """Which tokens are sinks."""
        state = hidden.float()
        size = state.pow(2).mean(-1, keepdim=True).sqrt()
        return ((state / size)[..., self.channels].abs() > self.tau).any(-1)

    def rows(self, queries: TokenMap) -> Tensor:
        """Where any sample has text after an image."""
        return words_after_images(queries)

    def weights(self, rows: Rows) -> Tensor:
        """Sinks give, other image tokens take."""
        assert rows.marks is not None
        old, keys = rows.old, rows.keys
        sink = (rows.marks.bool() & keys.present)[:, None, None]
        takes = keys.visual[:, None, None] & ~sink
        seen = (old * keys.visual[:, None, None]).sum(-1, keepdim=True)
        free = (old * takes).sum(-1, keepdim=True)
        is_text = (rows.queries.kind >= QUESTION)[:, None, :, None]
        changed = is_text & (seen >= self.image) & (free >= self.rho * seen) & (free > 0)
        given = (old * sink).sum(-1, keepdim=True) * (1 - self.share)
        new = torch.where(sink, old * self.share, old) + torch.where(takes, old * given / free.clamp(min=1e-12), 0.0)
        return torch.where(changed, new, old)
