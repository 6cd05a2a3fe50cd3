"""Which keys sparse patterns leave to a prompt's rows, against slow searches, and that answers see all."""

from __future__ import annotations

import itertools

import pytest
import torch

from blocks.edits import AShape, BlockSparse, HierarchicalPruning, VerticalSlash
from blocks.edits.functions.minference import SparsePrompt
from blocks.tokens import Attending
from tests.tiny_maps import attending, edges, plain_kernel, token_map

TEXT = "pp" + "s" * 5 + "i" * 8 + "q" * 7 + "aa"
TOKENS = token_map(TEXT)
PROMPT = range(2, 22)


def told(seed: int = 0) -> Attending:
    return attending(TOKENS, heads=2, groups=1, seed=seed)


def seen(method: SparsePrompt, given: Attending, head: int) -> list[set[int]]:
    found = []

    def kernel(masked: Attending, value: torch.Tensor) -> torch.Tensor:
        found.append(masked.allowed)
        return plain_kernel(masked, value)

    method.attend(kernel, given, torch.randn(1, 1, len(TEXT), 3), 2)
    return edges(found[0], head=head)


def test_first_and_near_tokens_make_an_a() -> None:
    for head in range(2):
        found = seen(AShape(2, 3, heads=[0]), told(), head)
        for query in range(2, len(TEXT)):
            sparse = head == 0 and query in PROMPT
            wanted = {k for k in range(2, query + 1) if not sparse or k - 2 < 2 or query - k < 3}
            assert found[query] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_columns_and_diagonals_of_the_largest_sums(seed: int) -> None:
    given = told(seed)
    weights = given.weights()
    for head in range(2):
        last = list(PROMPT)[-4:]
        column = {k: sum(float(weights[0, head, q, k]) for q in last) for k in range(2, len(TEXT))}
        column[2] = float("inf")  # the first is taken always
        gap = {g: sum(float(weights[0, head, q, q - g]) for q in last if q - g >= 2) for g in range(22)}
        gap[0] = float("inf")
        columns = sorted(column, key=lambda k: -column[k])[:3]
        gaps = sorted(gap, key=lambda g: -gap[g])[:2]
        found = seen(VerticalSlash(3, 2, last=4, first=1), given, head)
        for query in range(2, len(TEXT)):
            keys = range(2, query + 1)
            assert found[query] == {k for k in keys if query not in PROMPT or k in columns or query - k in gaps}


@pytest.mark.parametrize("seed", range(3))
def test_blocks_whose_means_go_together(seed: int) -> None:
    given = told(seed)
    block = {n: (n - 2) // 4 for n in range(2, len(TEXT))}
    for head in range(2):
        means = [
            {b: torch.stack([each[n] for n in PROMPT if block[n] == b]).mean(0) for b in range(5)}
            for each in (given.query[0, head], given.key[0, 0])
        ]
        found = seen(BlockSparse(4, 2), given, head)
        for query in PROMPT:
            own = block[query]
            earlier = sorted(range(own), key=lambda b, own=own: -float(means[0][own] @ means[1][b]))[:1]  # type: ignore[misc]
            assert found[query] == {k for k in range(2, query + 1) if block[k] in {own, *earlier}}


def halved(scores: list[float], keys: int) -> set[int]:
    """HiP's search of one row, by lists."""
    number = len(scores)
    chunks = [(number * c // keys, number * (c + 1) // keys) for c in range(keys)]
    while max(stop - start for start, stop in chunks) > 1:
        halves = [((a, (a + b) // 2), ((a + b) // 2, b)) for a, b in chunks]
        some = [half for half in itertools.chain(*halves) if half[1] > half[0]]
        chunks = sorted(some, key=lambda half: -scores[(half[0] + half[1]) // 2])[:keys]
    return {a for a, b in chunks if b > a}


@pytest.mark.parametrize("seed", range(3))
def test_chunks_are_halved_until_they_hold_one_key(seed: int) -> None:
    given = told(seed)
    logits = given.logits()
    for head in range(2):
        found = seen(HierarchicalPruning(4), given, head)
        for query in PROMPT:
            wanted = {2 + k for k in halved(logits[0, head, query, 2 : query + 1].tolist(), 4)} | {query}
            assert found[query] == wanted
