"""What every layer's cache holds, so that its masks and positions are right after tokens were dropped.

Shape legend: B batch, T tokens of the prompt, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from blocks.edits.base import MaskProgram, Where
from blocks.tokens.attending import Attending
from blocks.tokens.token_map import TokenMap, rows, square
from sparsight.common.plain import setting
from sparsight.lvlm.methods.kernels import as_bools

RECURRENT = {"linear_attention", "conv", "mamba"}  # layers with a state in place of keys
SLIDING = "sliding_attention"


class CacheGuard:
    """Follows the tokens of a prompt and its answer through the layers of a decoder.

    Args:
        tokens: The prompt.
        config: Of the text model.

    Attributes:
        answering: Whether the prompt was read.
        changed: Whether any layer holds other tokens than the caller counts.
        narrowed: Whether a layer computes other tokens than entered the decoder.
        outer: Tokens so far, as the caller counts them.
        shift: How much lower the positions of the answer are than the caller's, for all layers (B, 1).
        prompt: What enters the decoder: what reducers left, then the answer.
        local: What is left of it at the layer that is being computed.
        path: Where that stands in what enters the decoder.
        origin: Where it stood in the caller's prompt, and ``valid`` whether it is a token at all.
        seen: The keys of each layer.
        fresh: The last of them, which are its queries.
        tables: Position encodings of all tokens so far, of layers whose positions are numbered anew.
        taps: What layers attended with, for those who ask.
        marks: What attention edits remember of keys, by layer and number of the edit; those in ``measured`` come from
            attention itself.
        factors: Of heads that are scaled by a comparison (B, h), by layer and number of the edit.
        vision: Attention in layers of the vision tower on what enters the decoder (B, T).
        scale: Factors of what the feed-forward part of the layer that is being computed adds (B, Q, 1).
        branches: Caches of second passes.
        entering: What entered the decoder, for policies.
        deep: What some models add to image tokens after each of the first layers.
        seeds: A number that depends on the prompt alone, for each sample.
    """

    def __init__(self, tokens: TokenMap, config: Any, seeds: Sequence[int]) -> None:
        self.kinds = setting(config, "layer_types") or ["full_attention"] * config.num_hidden_layers
        self.window = setting(config, "sliding_window")
        self.seeds = list(seeds)
        self.answering = self.changed = self.narrowed = False
        self.outer = tokens.kind.shape[1]
        self.shift: Any = 0
        self.taps: dict[int, Attending] = {}
        self.marks: dict[tuple[int, int], Tensor] = {}
        self.deep: list[Tensor] = []
        self.seen: dict[int, TokenMap] = {}
        self.fresh: dict[int, TokenMap] = {}
        self.measured: set[tuple[int, int]] = set()
        self.factors: dict[tuple[int, int], Tensor] = {}
        self.vision: dict[int, Tensor] = {}
        self.scale: Tensor | None = None
        self.branches: list[Any] = []
        self.entering: Tensor | None = None
        self.tables: dict[int, tuple[Tensor, ...]] = {}
        self.start(tokens, tokens.place, torch.ones_like(tokens.place, dtype=torch.bool))

    def start(self, tokens: TokenMap, origin: Tensor, valid: Tensor) -> None:
        """The decoder begins with these tokens, which stood at ``origin`` in the prompt."""
        self.prompt = self.local = tokens
        self.path = torch.arange(tokens.kind.shape[1], device=origin.device).expand_as(origin)
        self.origin, self.valid = origin, valid

    def narrow(self, index: Tensor, valid: Tensor) -> None:
        """From here on, only these of the local tokens are computed."""
        self.local, self.path, self.changed = self.local.take(index, valid), self.path.gather(1, index), True
        self.narrowed = True
        self.origin, self.valid = self.origin.gather(1, index), self.valid.gather(1, index) & valid

    @property
    def first(self) -> Tensor:
        """Where the first token of each sample stands (B)."""
        return self.prompt.present.int().argmax(1)

    def grow(self, count: int) -> None:
        """Tokens of the answer come in; equal records of several layers stay one."""
        length = self.prompt.kind.shape[1]
        known = {id(tokens): tokens.grown(count, length) for tokens in (self.prompt, *self.seen.values())}
        self.prompt, self.seen = known[id(self.prompt)], {layer: known[id(old)] for layer, old in self.seen.items()}
        self.outer += count

    def select(self, index: Tensor) -> None:
        """Go on with chosen samples, each perhaps several times."""
        known = {id(tokens): tokens.rows(index) for tokens in (self.prompt, *self.seen.values())}
        self.prompt, self.seen = known[id(self.prompt)], {layer: known[id(old)] for layer, old in self.seen.items()}
        self.marks = {name: marks[index] for name, marks in self.marks.items()}
        self.factors = {name: factors[index] for name, factors in self.factors.items()}
        self.vision = {layer: scores[index] for layer, scores in self.vision.items()}
        self.tables = {
            layer: tuple(part.expand(len(index), *part.shape[1:]) if len(part) == 1 else part[index] for part in parts)
            for layer, parts in self.tables.items()
        }
        self.shift = self.shift[index] if isinstance(self.shift, Tensor) else self.shift

    def renumbered(self, layer: int, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Position encodings (B, Q, d) of a layer's queries as if no token before them were missing.

        Args:
            layer: Index.
            given: Encodings of all tokens that entered the decoder in this pass (B or 1, T or Q, d).
        """
        samples, seen = len(self.prompt.kind), self.seen[layer].present
        old = self.tables.get(layer) if self.answering else None
        if old is None:
            self.tables[layer] = given
        else:
            self.tables[layer] = tuple(
                torch.cat([part.expand(samples, -1, -1), new.expand(samples, -1, -1)], 1)
                for part, new in zip(old, given, strict=True)
            )
        rank = (seen.cumsum(1) - 1).clamp(min=0)[:, -given[0].shape[1] if self.answering else 0 :]
        order = torch.argsort(~self.prompt.present, dim=1, stable=True)
        return tuple(rows(part, order.gather(1, rank)) for part in self.tables[layer])

    def mask(
        self,
        layer: int,
        given: Any,
        path: Tensor | None,
        held: Cache | None,
        programs: Sequence[MaskProgram],
        where: Where,
    ) -> Tensor | None:
        """Who sees whom in a layer (B, 1 or h, Q, K), or nothing for a layer with a state, or where it is just causal.

        Args:
            layer: Index.
            given: The mask that the decoder made of what entered it.
            path: Where the queries stand in that, while the prompt is read.
            held: The cache.
            programs: What changes masks.
            where: What they are told of the layer.
        """
        queries, keys = self.fresh[layer], self.seen[layer]
        if self.kinds[layer] in RECURRENT:
            return queries.present if path is not None and not bool(queries.present.all()) else None
        window = self.window if self.kinds[layer] == SLIDING else None
        if given is None and window is None and not programs and bool(keys.present.all()):
            return None
        count, width = queries.kind.shape[1], keys.kind.shape[1]
        width, first = (width, 0) if held is None else held.get_mask_sizes(count, layer)
        keys = keys.span(first, first + width)
        gap = (queries.place[:, :, None] - keys.place[:, None])[:, None]
        allowed = gap >= 0 if given is None or path is None else square(as_bools(given, _shape(self.prompt)), path)
        allowed = allowed & keys.present[:, None, None]
        allowed = allowed if window is None else allowed & (gap < window)
        for program in programs:
            allowed = program.allow(allowed, queries, keys, where) & keys.present[:, None, None]
        return F.pad(allowed, (0, width - allowed.shape[-1]))


def _shape(tokens: TokenMap) -> tuple[int, int, int, int]:
    samples, length = tokens.kind.shape
    return samples, 1, length, length


class GuardedCache(Cache):
    """A cache whose guard goes along when samples are chosen."""

    guard: CacheGuard

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose samples."""
        super().reorder_cache(beam_idx)
        self.guard.select(beam_idx)
        for second in self.guard.branches:
            second.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Choose samples."""
        super().batch_select_indices(indices)
        self.guard.select(indices)
        for second in self.guard.branches:
            second.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let each sample be there several times."""
        super().batch_repeat_interleave(repeats)
        number = torch.arange(len(self.guard.prompt.kind), device=self.guard.prompt.kind.device)
        self.guard.select(number.repeat_interleave(repeats))
        for second in self.guard.branches:
            second.batch_repeat_interleave(repeats)

    def crop(self, *_: int) -> None:
        """Refuse to forget the end, as assisted decoding asks.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a cache under a recipe cannot be cropped: generate without an assistant")


def guarded(held: Cache, guard: CacheGuard) -> None:
    """Let a guard follow a cache, whose class stays what it was besides."""
    if not isinstance(held, GuardedCache):
        kind: Any = type(held)
        held.__class__ = _guarded(kind)
    held.guard = guard


@cache
def _guarded(kind: Any) -> type[Cache]:
    return type(kind.__name__, (GuardedCache, kind), {})
