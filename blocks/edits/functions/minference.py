"""MInference's three sparse patterns (Jiang et al., arXiv 2407.02490).

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head, P blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import AttentionFunction, Kernel, within_layers
from blocks.tokens.attending import Attending
from blocks.tokens.token_map import ANSWER


class SparsePrompt(AttentionFunction):
    """Lets the rows of a prompt see a part of their keys; answers see all, as do heads that are not named.

    Patterns go by distances from a sample's first token, so that padding changes nothing. They become masks of a stock
    kernel: the result of a sparse kernel without its speed.
    """

    def __init__(self, layers: Sequence[int] | None, heads: Sequence[int] | None) -> None:
        self.layers = None if layers is None else sorted(layers)
        self.heads = None if heads is None else sorted(heads)

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return within_layers(self.layers, layer)

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """The kernel's, under the pattern."""
        told = attending.queries.kind == ANSWER
        if bool(told.all()):
            return kernel(attending, value)
        seen = self.pattern(attending) | told[:, None, :, None]
        if self.heads is not None:
            sparse = torch.zeros(attending.query.shape[1], dtype=torch.bool, device=value.device)
            sparse[self.heads] = True
            seen = seen | ~sparse[:, None, None]
        itself = attending.queries.place[:, :, None] == attending.keys.place[:, None]
        return kernel(attending._replace(allowed=attending.allowed & (seen | itself[:, None])), value)

    @abstractmethod
    def pattern(self, attending: Attending) -> Tensor:
        """What rows of the prompt see (B, 1 or h, Q, K), causal or not."""


def distances(attending: Attending) -> tuple[Tensor, Tensor]:
    """How far from the first token of their sample queries (B, Q) and keys (B, K) stand; below 0 for padding."""
    keys = attending.keys
    start = torch.where(keys.present, keys.place, keys.place.amax() + 1).amin(1, keepdim=True)
    return attending.queries.place - start, torch.where(keys.present, keys.place - start, -1)


class AShape(SparsePrompt):
    """The first tokens and the last ones before each row (MInference's A-shape).

    Args:
        first: How many first tokens.
        near: How many last ones, the row's own among them.
        layers: Where; everywhere if not given.
        heads: Which heads; all if not given.
    """

    def __init__(
        self,
        first: int = 128,
        near: int = 1024,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers, heads)
        if first < 0 or near < 1:
            raise ValueError(f"first is from 0 and near from 1; got {first} and {near}")
        self.first, self.near = first, near

    def pattern(self, attending: Attending) -> Tensor:
        """Both parts."""
        looks, seen = distances(attending)
        return ((seen[:, None] < self.first) | (looks[:, :, None] - seen[:, None] < self.near))[:, None]


class VerticalSlash(SparsePrompt):
    """Columns and diagonals that the prompt's last rows lay most attention on (MInference's vertical-slash).

    Args:
        vertical: How many columns.
        slash: How many diagonals, the main one among them always.
        last: How many last rows of the prompt are looked at.
        first: How many first columns are taken always.
        layers: Where; everywhere if not given.
        heads: Which heads; all if not given.
    """

    def __init__(
        self,
        vertical: int = 1000,
        slash: int = 6096,
        last: int = 64,
        first: int = 30,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers, heads)
        if min(vertical, slash, last) < 1 or first < 0:
            raise ValueError(
                f"vertical, slash and last are from 1, first from 0; got {vertical}, {slash}, {last}, {first}"
            )
        self.vertical, self.slash, self.last, self.first = vertical, slash, last, first

    def pattern(self, attending: Attending) -> Tensor:
        """The columns and diagonals with the largest sums."""
        looks, seen = distances(attending)
        asks = (attending.queries.kind != ANSWER) & attending.queries.present
        asking = asks & (asks.flip(1).cumsum(1).flip(1) <= self.last)
        places = asking.any(0).nonzero()[:, 0]
        weights = attending.within(places).weights().detach() * asking[:, None, places, None]  # B, h, R, K
        columns = weights.sum(2).masked_fill((seen < self.first)[:, None], float("inf"))
        columns = columns.masked_fill(~attending.keys.present[:, None], float("-inf"))
        gap = looks[:, places, None] - seen[:, None]  # B, R, K
        gap = gap.clamp(min=0)[:, None].expand_as(weights)
        length = int(looks.amax()) + 1
        diagonals = weights.new_zeros(*weights.shape[:2], length)
        diagonals.scatter_add_(2, gap.flatten(2).clamp(max=length - 1), weights.flatten(2))
        diagonals[..., 0] = float("inf")
        of_columns, of_diagonals = best(columns, self.vertical), best(diagonals, self.slash)
        apart = (looks[:, :, None] - seen[:, None]).clamp(0, length - 1)[:, None]
        taken = of_diagonals.gather(2, apart.expand(-1, weights.shape[1], -1, -1).flatten(2)).unflatten(
            2, tuple(apart.shape[2:])
        )
        return of_columns[:, :, None] | taken


class BlockSparse(SparsePrompt):
    """For each block of rows, blocks of keys whose mean goes best with the mean of the rows (MInference's third).

    Args:
        block: Tokens of a block.
        blocks: How many blocks of keys each block of rows sees; its own always.
        layers: Where; everywhere if not given.
        heads: Which heads; all if not given.
    """

    def __init__(
        self,
        block: int = 64,
        blocks: int = 100,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers, heads)
        if min(block, blocks) < 1:
            raise ValueError(f"block and blocks are from 1; got {block} and {blocks}")
        self.block, self.blocks = block, blocks

    def pattern(self, attending: Attending) -> Tensor:
        """The best blocks of each block, causally."""
        looks, seen = (place.div(self.block, rounding_mode="floor") for place in distances(attending))
        count = int(torch.maximum(looks.amax(), seen.amax())) + 1
        asks = (attending.queries.kind != ANSWER) & attending.queries.present
        holds = (attending.keys.kind != ANSWER) & attending.keys.present
        keys = attending.key.repeat_interleave(attending.query.shape[1] // attending.key.shape[1], 1)
        means = pooled(attending.query, looks, asks, count), pooled(keys, seen, holds, count)
        logits = (means[0] @ means[1].transpose(2, 3)).detach()  # B, h, P, P
        number = torch.arange(count, device=looks.device)
        filled = F.one_hot(seen.clamp(min=0), count).mul(holds[..., None]).any(1)
        logits = logits.masked_fill((number[:, None] < number) | ~filled[:, None, None], float("-inf"))
        logits = logits.masked_fill(number[:, None] == number, float("inf"))
        taken = best(logits, self.blocks)
        at_rows = taken.gather(2, looks.clamp(min=0)[:, None, :, None].expand(-1, taken.shape[1], -1, count))
        return at_rows.gather(3, seen.clamp(min=0)[:, None, None].expand(*at_rows.shape[:3], -1))


def pooled(values: Tensor, block: Tensor, counts: Tensor, blocks: int) -> Tensor:
    """Means (B, h, P, d) over the tokens of each block that count; of values (B, h, T, d), by blocks (B, T)."""
    member = F.one_hot(block.clamp(min=0), blocks).mul(counts[..., None]).to(values.dtype)  # B, T, P
    total = member.transpose(1, 2)[:, None] @ values
    return total / member.sum(1).clamp(min=1)[:, None, :, None]


def best(scores: Tensor, count: int) -> Tensor:
    """Which entries of the last axis are among the largest, and more than minus infinity."""
    count = min(count, scores.shape[-1])
    index = scores.topk(count, -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True) & (scores > float("-inf"))
