"""Token maps and attentions at a tiny size, for methods of recipes that are tried without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.edits.base import Rows
from blocks.tokens import Attending, TokenMap
from blocks.tokens.attending import masked_softmax
from blocks.tokens.token_map import ANSWER, IMAGE, PAD, QUESTION, SYSTEM

LETTERS = {"p": PAD, "s": SYSTEM, "i": IMAGE, "q": QUESTION, "a": ANSWER, "j": IMAGE}


def token_map(*texts: str, columns: int = 2) -> TokenMap:
    """A map from letters: p padding, s system, i image, j the next image, q question, a answer.

    Args:
        texts: One a sample, of equal lengths.
        columns: Of the grid of patches of each image.
    """
    kind = torch.tensor([[LETTERS[letter] for letter in text] for text in texts])
    image = torch.full_like(kind, -1)
    row, column = image.clone(), image.clone()
    for sample, text in enumerate(texts):
        for number, letter in enumerate("ij"):
            places = [n for n, found in enumerate(text) if found == letter]
            image[sample, places] = number
            row[sample, places] = torch.arange(len(places)) // columns
            column[sample, places] = torch.arange(len(places)) % columns
    crop = torch.where(image >= 0, 0, -1)
    return TokenMap(kind, image, crop, row, column, torch.arange(kind.shape[1]).expand_as(kind))


def causal(tokens: TokenMap) -> Tensor:
    """What is seen without any method (B, 1, T, T)."""
    length = tokens.kind.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None] & tokens.present[:, None, None]


def attending(tokens: TokenMap, *, heads: int = 2, groups: int = 1, channels: int = 4, seed: int = 0) -> Attending:
    """A causal attention of random queries and keys."""
    drawn = torch.Generator().manual_seed(seed)
    samples, length = tokens.kind.shape
    query = torch.randn(samples, heads, length, channels, generator=drawn)
    key = torch.randn(samples, groups, length, channels, generator=drawn)
    return Attending(query, key, causal(tokens), tokens, tokens, channels**-0.5)


def rows_of(told: Attending, *, layer: int = 2, marks: Tensor | None = None, seen: Tensor | None = None) -> Rows:
    """All rows of an attention."""
    logits = told.logits()
    old = masked_softmax(logits, told.allowed)
    return Rows(old, logits, told.allowed, told.queries, told.keys, layer, marks, seen)


def plain_kernel(told: Attending, value: Tensor) -> Tensor:
    """Attention written out, as kernels answer (B, Q, h, d)."""
    values = value.repeat_interleave(told.query.shape[1] // value.shape[1], 1)
    return (told.weights() @ values).transpose(1, 2)


def edges(allowed: Tensor, *, head: int = 0, sample: int = 0) -> list[set[int]]:
    """For each query, which keys it sees."""
    return [set(row.nonzero()[:, 0].tolist()) for row in allowed[sample, min(head, allowed.shape[1] - 1)]]


def texts_of(tokens: TokenMap) -> Sequence[int]:
    """Kinds of the first sample."""
    return tokens.kind[0].tolist()
