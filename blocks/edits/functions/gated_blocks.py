"""SeerAttention: a gate that learns which blocks of attention matter (Gao et al., arXiv 2410.13276).

Shape legend: B batch, Q queries, K keys, T tokens, L layers, h heads, d channels of a head, e turned channels, P
blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blocks.edits.base import AttentionFunction, Kernel, within_layers
from blocks.tokens.attending import ROWS_AT_ONCE, Attending
from blocks.tokens.token_map import ANSWER, TokenMap
from blocks.tokens.weighted import Shape, Weighted


class GatedBlocks(Weighted, AttentionFunction):
    """Rows of a prompt see the blocks of keys that a gate gives enough (SeerAttention); answers see all.

    The gate is a softmax over products of mean queries, and of the largest, smallest and mean keys of each block, both
    before positions were encoded, projected, and turned by the position of the block's first token. While it trains,
    attention is whole, and the gate learns the largest weight in each block, by a Kullback-Leibler divergence; the
    model should be frozen. Until then it is the product of means. The result of a sparse kernel without its speed.

    Args:
        threshold: Blocks are seen from this share of the gate on, and each row's own block always.
        blocks: How many are seen, in place of a threshold.
        block: Tokens of a block, counted from a sample's first token.
        layers: Where; everywhere if not given.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(
        self,
        threshold: float | None = 2e-3,
        blocks: int | None = None,
        block: int = 64,
        layers: Sequence[int] | None = None,
        trained: str | None = None,
    ) -> None:
        if (threshold is None) == (blocks is None):
            raise ValueError("GatedBlocks needs threshold or blocks, and the other to be null")
        if block < 1 or (blocks is not None and blocks < 1) or (threshold is not None and not 0 <= threshold <= 1):
            raise ValueError(f"block and blocks are from 1, threshold 0 to 1; got {block}, {blocks} and {threshold}")
        self.threshold, self.blocks, self.block = threshold, blocks, block
        self.layers, self.trained = None if layers is None else sorted(layers), trained
        self._losses: list[Tensor] = []

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return within_layers(self.layers, layer)

    def make(self, shape: Shape) -> nn.Module:
        """Projections that leave means as they are."""
        return _Gate(shape)

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """The kernel's, over the blocks that the gate gives enough; over all while it trains."""
        told = attending.queries.kind == ANSWER
        if bool(told.all()):
            return kernel(attending, value)
        prompt = attending.prompt()
        place, count = numbered(prompt.queries, self.block)
        gate = self.gate(prompt, layer, place, count)
        if attending.learns:
            if torch.is_grad_enabled():
                self._losses.append(divergence(self.largest(prompt, place, count), gate, prompt.queries, self.block))
            return kernel(attending, value)
        itself = torch.eye(count, dtype=torch.bool, device=value.device)
        if self.blocks is not None:
            seen = torch.zeros_like(gate, dtype=torch.bool)
            seen = seen.scatter(-1, gate.topk(min(self.blocks, count), -1).indices, True) | itself
        else:
            assert self.threshold is not None
            seen = (gate >= self.threshold) | itself
        at = place.clamp(min=0)[:, None].expand(-1, gate.shape[1], -1)
        rows = seen.gather(2, at[..., None].expand(-1, -1, -1, count))
        found = rows.gather(3, at[:, :, None].expand(-1, -1, at.shape[-1], -1))
        found = nn.functional.pad(found, (0, attending.key.shape[2] - found.shape[-1]))
        return kernel(attending._replace(allowed=attending.allowed & (found | told[:, None, :, None])), value)

    def gate(self, prompt: Attending, layer: int, place: Tensor, count: int) -> Tensor:
        """Shares of blocks (B, h, P, P), float32, that each row of blocks gives to those up to it."""
        plain = prompt.unturned()
        shared = plain.query.shape[1] // plain.key.shape[1]
        query, key = plain.query.detach().float(), plain.key.detach().float().repeat_interleave(shared, 1)
        member = place[:, None] == torch.arange(count, device=place.device)[:, None]  # (B, P, T)
        mean = member / member.sum(-1, keepdim=True).clamp(min=1)
        pooled = mean[:, None] @ query
        into = place.where(place >= 0, count)[:, None, :, None].expand_as(key)  # padding and answers go behind the last
        start = key.new_zeros(*key.shape[:2], count + 1, key.shape[-1])
        ends = [start.scatter_reduce(2, into, key, how, include_self=False)[:, :, :count] for how in ("amax", "amin")]
        keys = torch.cat([*ends, mean[:, None] @ key], -1)
        asks = torch.einsum("bhpd,hde->bhpe", pooled, self.held.query[layer])
        told = torch.einsum("bhpd,hde->bhpe", keys, self.held.key[layer])
        first = member.int().argmax(-1)
        assert plain.tables is not None
        tables = tuple(
            part.expand(len(first), -1, -1).gather(1, first[..., None].expand(-1, -1, part.shape[-1])).float()
            for part in plain.tables
        )
        logits = (turned(asks, tables) @ turned(told, tables).transpose(2, 3)).float() * prompt.scaling
        there = member.any(-1)
        may = torch.ones(count, count, dtype=torch.bool, device=place.device).tril() & there[:, None]
        may = may | torch.eye(count, dtype=torch.bool, device=place.device)
        return logits.masked_fill(~may[:, None], torch.finfo(torch.float32).min / 2).softmax(-1)

    @torch.no_grad()
    def largest(self, prompt: Attending, place: Tensor, count: int) -> Tensor:
        """The largest weight of each block of the true attention (B, h, P, P), rows made to sum to 1."""
        found = prompt.query.new_zeros(*prompt.query.shape[:2], count + 1, count + 1, dtype=torch.float32)
        where = place.where(place >= 0, count)
        for rows in torch.arange(place.shape[1], device=place.device).split(ROWS_AT_ONCE):
            weights = prompt.within(rows).weights()
            columns = weights.new_zeros(*weights.shape[:3], count + 1)
            into = where[:, None, None].expand_as(weights)
            columns = columns.scatter_reduce(3, into, weights, "amax")
            into = where[:, None, rows, None].expand_as(columns)
            found = found.scatter_reduce(2, into, columns, "amax")
        kept = found[:, :, :count, :count]
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-12)

    def loss(self) -> Tensor | None:
        """The divergences of all layers, mean over them."""
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None


class _Gate(nn.Module):
    """Projections of mean queries (L, h, d, d), and of largest, smallest and mean keys (L, h, 3d, d)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        same = torch.eye(shape.head_channels).expand(shape.depth, shape.heads, -1, -1)
        nothing = torch.zeros_like(same)
        self.query = nn.Parameter(same.clone())
        self.key = nn.Parameter(torch.cat([nothing, nothing, same], 2))


def numbered(tokens: TokenMap, block: int) -> tuple[Tensor, int]:
    """The block (B, T) of each token of the prompt, -1 for others, and how many the longest prompt has."""
    asked = tokens.present & (tokens.kind != ANSWER)
    number = (asked.cumsum(1) - 1).div(block, rounding_mode="floor")
    return torch.where(asked, number, -1), -(-int(asked.sum(1).max()) // block)


def divergence(wanted: Tensor, gate: Tensor, tokens: TokenMap, block: int) -> Tensor:
    """Kullback-Leibler divergence of gates (B, h, P, P) from what is wanted, mean over rows of blocks with tokens."""
    asked = (tokens.present & (tokens.kind != ANSWER)).sum(1)
    there = torch.arange(gate.shape[2], device=gate.device) * block < asked[:, None]
    each = torch.special.xlogy(wanted, wanted) - wanted * gate.clamp(min=1e-12).log()
    rows = each.sum(-1).mean(1)
    return rows[there].mean()


def turned(plain: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
    """Rotary position encoding in halves (B, h, P, d) by cosines and sines (B, P, e) of the first e channels."""
    cos, sin = (part[:, None] for part in tables)
    width = cos.shape[-1]
    first, rest = plain[..., :width], plain[..., width:]
    one, other = first.chunk(2, -1)
    return torch.cat([first * cos + torch.cat([-other, one], -1) * sin, rest], -1)
