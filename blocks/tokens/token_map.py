"""Where the tokens of a batch come from, while methods drop, merge and reorder nothing but what this map follows.

Shape legend: B batch, T tokens, K kept tokens, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PAD, SYSTEM, IMAGE, QUESTION, ANSWER = range(5)
NOWHERE = -1  # image, crop, row and column of what is no part of an image


class TokenMap(NamedTuple):
    """Six whole numbers for every token, each (B, T).

    Args:
        kind: One of ``PAD``, ``SYSTEM`` (text before the first image), ``IMAGE``, ``QUESTION`` (text after it) and
            ``ANSWER`` (all from the first word of an answer on).
        image: Which image of its sample, from 0.
        crop: Which crop, tile or view of that image, from 0.
        row: Row in the patch grid of the crop.
        column: Column in it; marks at the ends of rows have neither crop, row nor column.
        place: Where the token stood in the prompt, whatever was dropped since.
    """

    kind: Tensor
    image: Tensor
    crop: Tensor
    row: Tensor
    column: Tensor
    place: Tensor

    @property
    def present(self) -> Tensor:
        """What is not padding."""
        return self.kind != PAD

    @property
    def visual(self) -> Tensor:
        """What stands for a part of an image that the prompt shows."""
        return self.kind == IMAGE

    @property
    def last(self) -> Tensor:
        """The last token of each prompt (B): after it comes the answer."""
        asked = self.present & (self.kind != ANSWER)
        return torch.where(asked, torch.arange(asked.shape[1], device=asked.device), 0).amax(1)

    def take(self, index: Tensor, valid: Tensor) -> TokenMap:
        """Chosen tokens (B, K); those that are not valid count as padding."""
        found = TokenMap(*(part.gather(1, index) for part in self))
        return found._replace(kind=found.kind.masked_fill(~valid, PAD))

    def rows(self, index: Tensor) -> TokenMap:
        """Chosen samples."""
        return TokenMap(*(part[index] for part in self))

    def span(self, start: int, stop: int | None = None) -> TokenMap:
        """Tokens one after the other."""
        return TokenMap(*(part[:, start:stop] for part in self))

    def fitted(self, width: int) -> TokenMap:
        """The last tokens, or with padding after them: as many as a cache holds."""
        length = self.kind.shape[1]
        return TokenMap(*(F.pad(part[:, max(length - width, 0) :], (0, max(width - length, 0))) for part in self))

    def grown(self, count: int, start: int) -> TokenMap:
        """With more tokens of an answer, which stand from ``start`` on."""
        place = torch.arange(start, start + count).to(self.place).expand(len(self.place), -1)
        nowhere = torch.full_like(place, NOWHERE)
        new = TokenMap(torch.full_like(place, ANSWER), nowhere, nowhere, nowhere, nowhere, place)
        return TokenMap(*(torch.cat(pair, 1) for pair in zip(self, new, strict=True)))


def chosen(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of kept tokens in their order, and which of them are valid, both (B, K).

    K is the largest number that a sample keeps; the others begin with copies of their first one, which are not valid.

    Args:
        keep: Which tokens are kept (B, T).
    """
    count = keep.sum(1, keepdim=True)
    rank = torch.arange(int(count.max()), device=keep.device) - (count.max() - count)
    return torch.argsort(~keep, dim=1, stable=True).gather(1, rank.clamp(min=0)), rank >= 0


def rows(values: Any, index: Tensor) -> Any:
    """Chosen tokens (B, K, ...) of values (B or 1, T, ...); nothing of nothing."""
    if values is None:
        return None
    return values.expand(len(index), *values.shape[1:])[torch.arange(len(index), device=index.device)[:, None], index]


def square(mask: Tensor, index: Tensor) -> Tensor:
    """Chosen tokens on both sides of a mask (B or 1, 1, T, T): (B, 1, K, K)."""
    return rows(rows(mask[:, 0], index).transpose(1, 2), index).transpose(1, 2)[:, None]


def put(values: Tensor, index: Tensor, valid: Tensor, new: Tensor) -> Tensor:
    """A copy of values (B, T, C) with the valid ones of new (B, K, C) in their places."""
    sample = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    return values.index_put((sample[valid], index[valid]), new[valid])


def best_visual(scores: Tensor, tokens: TokenMap, count: Tensor) -> Tensor:
    """All text, and of each sample the visual tokens with the highest scores.

    Args:
        scores: (B, T).
        tokens: Of the batch.
        count: How many visual tokens each sample keeps (B).

    Returns:
        Which are kept (B, T).
    """
    order = torch.argsort(scores.masked_fill(~tokens.visual, float("-inf")), dim=1, descending=True, stable=True)
    rank = order.argsort(1)
    return ~tokens.visual | (rank < count[:, None])
