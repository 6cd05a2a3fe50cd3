"""Captions as words and n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; hyphens and apostrophes inside a word stay.

    COCO's evaluation uses the Penn Treebank tokenizer, a Java program, which also splits contractions (do n't) and
    keeps decimal numbers whole.
    """
    return re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text.lower())


def ngrams(tokens: Sequence[str], *, order: int) -> Counter[Ngram]:
    """How often each sequence of 1 to ``order`` words occurs."""
    spans = (tokens[i : i + n] for n in range(1, order + 1) for i in range(len(tokens) - n + 1))
    return Counter(map(tuple, spans))
