"""What one attention computes with, for methods that ask for a few of its weights; the kernel computes all others.

Shape legend: B batch, Q queries, K keys, T tokens, h heads, g heads of keys, d channels of a head, R rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from blocks.tokens.token_map import TokenMap

ROWS_AT_ONCE = 128  # bounds memory to that many rows of a map


class Attending(NamedTuple):
    """Queries and keys of a layer, as the kernel gets them.

    Args:
        query: Position-encoded (B, h, Q, d).
        key: Position-encoded (B, g, K, d), each for h / g heads.
        allowed: Who may look at whom (B, 1 or h, Q, K).
        queries: Map of the queries.
        keys: Map of the keys.
        scaling: Multiplies the logits.
        softcap: Bounds the logits, if any.
        tables: Cosines and sines by which the queries were turned (B or 1, Q, up to d), if they are known.
        marks: What an attention function remembered of the keys (B, K, ...), if it did.
        learns: Whether the model trains, as an attention function is told.
    """

    query: Tensor
    key: Tensor
    allowed: Tensor
    queries: TokenMap
    keys: TokenMap
    scaling: float
    softcap: float | None = None
    tables: tuple[Tensor, Tensor] | None = None
    marks: Tensor | None = None
    learns: bool = False

    def within(self, places: Tensor) -> Attending:
        """Some queries (R) with all keys."""
        tables = self.tables
        if tables is not None:
            tables = (tables[0][:, places], tables[1][:, places])
        return self._replace(
            query=self.query[:, :, places],
            allowed=self.allowed[:, :, places],
            queries=TokenMap(*(part[:, places] for part in self.queries)),
            tables=tables,
        )

    def prompt(self) -> Attending:
        """Without keys that a cache holds beyond the queries: a static one is longer than what it was given."""
        width = self.queries.kind.shape[1]
        return self._replace(
            key=self.key[:, :, :width], allowed=self.allowed[..., :width], keys=self.keys.span(0, width)
        )

    def at(self, index: Tensor) -> Attending:
        """One query of each sample, by its index (B)."""
        sample = torch.arange(len(index), device=index.device)
        tables = self.tables
        if tables is not None:
            tables = tuple(part.expand(len(index), -1, -1)[sample, index][:, None] for part in tables)  # type: ignore[assignment]
        return self._replace(
            query=self.query[sample, :, index][:, :, None],
            allowed=self.allowed.expand(len(index), -1, -1, -1)[sample, :, index][:, :, None],
            queries=TokenMap(*(part[sample, index][:, None] for part in self.queries)),
            tables=tables,
        )

    def logits(self) -> Tensor:
        """Logits (B, h, Q, K), float32, without the mask."""
        keys = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        logits = self.query @ keys.transpose(2, 3) * self.scaling
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.float()

    def weights(self) -> Tensor:
        """Attention weights (B, h, Q, K), float32."""
        return masked_softmax(self.logits(), self.allowed)

    def last(self) -> Attending:
        """That of the prompt's last token alone."""
        return self.at(self.queries.last)

    def unturned(self) -> Attending:
        """Queries and keys before their positions were encoded, where as many of each were given.

        Raises:
            ValueError: It is not known by what they were turned.
        """
        if self.tables is None or self.query.shape[2] != self.key.shape[2]:
            raise ValueError("this model encodes positions in a way that cannot be taken back")
        return self._replace(query=unturned(self.query, self.tables), key=unturned(self.key, self.tables))

    def received(self, rows: Tensor, *, over: Literal["none", "mean", "max"] = "mean") -> Tensor:
        """Sum over some rows of what each key is given (B, h, K), computed a few rows at a time.

        Args:
            rows: Which queries count (B, Q).
            over: ``none``, or ``mean`` or ``max`` over heads before rows are added up, which gives one head.
        """
        heads = self.query.shape[1] if over == "none" else 1
        total = self.query.new_zeros(len(self.query), heads, self.key.shape[2], dtype=torch.float32)
        wanted = rows.any(0).nonzero()[:, 0]
        for places in wanted.split(ROWS_AT_ONCE):
            weights = self.within(places).weights()
            if over != "none":
                weights = weights.amax(1, keepdim=True) if over == "max" else weights.mean(1, keepdim=True)
            total = total + (weights * rows[:, None, places, None]).sum(2)
        return total


def masked_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over allowed keys; rows without any see all of them alike."""
    return logits.masked_fill(~allowed, torch.finfo(torch.float32).min / 2).softmax(-1)


def unturned(turned: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, h, T, d) before rotary position encoding in halves, up to a common factor.

    Args:
        turned: Those after it.
        tables: Cosines and sines (B or 1, T, e) of the first e channels; the others are not turned.
    """
    cos, sin = (part[:, None].to(turned) for part in tables)
    width = cos.shape[-1]
    first, rest = turned[..., :width], turned[..., width:]
    one, other = first.chunk(2, -1)
    return torch.cat([first * cos - torch.cat([-other, one], -1) * sin, rest], -1)
