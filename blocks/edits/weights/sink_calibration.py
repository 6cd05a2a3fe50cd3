"""ACT: sinks of chosen heads give attention to all others (Yu et al., arXiv 2406.15765).

Shape legend: B batch, Q queries, K keys, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blocks.edits.base import AttentionEdit, Rows, between
from blocks.tokens.attending import Attending
from blocks.tokens.token_map import ANSWER, TokenMap


class SinkCalibration(AttentionEdit):
    """In chosen heads, tokens that draw much attention keep a part of it; the rest goes to all others (ACT).

    A sink is a token, not the first of its sample, whose attention, mean over all rows of the prompt, is above a
    threshold. Others get what sinks give in proportion to what they have, the first token among them. Rows go on to
    sum to 1. Sinks are found in the prompt and stay while an answer is written.

    Args:
        heads: By layer; the authors find them by answers to 900 questions, in layers 2 to 30 of 32.
        beta: What sinks keep.
        threshold: Mean attention from which on a token is a sink. The paper has ``alpha`` / n, which is set by that.
        alpha: Threshold as a multiple of one over the number of tokens, in the place of ``threshold``.
    """

    def __init__(
        self,
        heads: Mapping[int, Sequence[int]],
        beta: float = 0.4,
        threshold: float = 0.1,
        alpha: float | None = None,
    ) -> None:
        if not heads:
            raise ValueError("heads names no layer: name the heads to be calibrated")
        self.heads = {int(layer): list(chosen) for layer, chosen in heads.items()}
        self.beta, self.threshold = between(beta, 0, 1, name="beta"), between(threshold, 0, 1, name="threshold")
        self.alpha = alpha

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return layer in self.heads

    def measure(self, attending: Attending, layer: int) -> Tensor:
        """Which tokens are sinks of which head (B, K, h)."""
        tokens = attending.queries
        rows = tokens.present & (tokens.kind != ANSWER)
        number = rows.sum(1)[:, None, None]
        mean = attending.received(rows, over="none") / number
        least = torch.full_like(mean[:, :1, :1], self.threshold) if self.alpha is None else self.alpha / number
        first = torch.nn.functional.one_hot(rows.int().argmax(1), rows.shape[1]).bool()
        return ((mean > least) & (rows & ~first)[:, None]).transpose(1, 2)

    def rows(self, queries: TokenMap) -> Tensor:
        """All."""
        return queries.present.any(0).nonzero()[:, 0]

    def weights(self, rows: Rows) -> Tensor:
        """Sinks give, all others take."""
        assert rows.marks is not None
        chosen = torch.zeros(rows.old.shape[1], dtype=torch.bool, device=rows.old.device)
        chosen[self.heads[rows.layer]] = True
        sink = rows.marks.bool().transpose(1, 2)[:, :, None] & chosen[:, None, None]
        taken = torch.where(sink, rows.old, 0.0).sum(-1, keepdim=True)
        others = (1 - taken).clamp(min=1e-12)
        grown = rows.old * (1 + (1 - self.beta) * taken / others)
        new = torch.where(sink, rows.old * self.beta, grown)
        return torch.where((taken > 0) & (taken < 1), new, rows.old)
