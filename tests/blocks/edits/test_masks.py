"""Who sees whom under mask programs, against each rule written out edge by edge."""

from __future__ import annotations

import pytest
import torch

from blocks.edits import (
    CompositeAttention,
    CorrelationMask,
    CrocAttention,
    ElasticSpans,
    FrameBlockAttention,
    Knockout,
    NeighbourWindow,
    ShiftedGroups,
    SinkGroups,
    StridedBlocks,
)
from blocks.edits.base import MaskProgram, Where
from tests.tiny_maps import attending, causal, edges, token_map

TEXT = "psiiiiqjjqqaa"
TOKENS = token_map(TEXT)
WHERE = Where(layer=2, depth=6, heads=4, start=torch.tensor([1]))


def seen(program: MaskProgram, *, head: int = 0, where: Where = WHERE) -> list[set[int]]:
    return edges(program.allow(causal(TOKENS), TOKENS, TOKENS, where) & TOKENS.present[:, None, None], head=head)


def wanted(rule: object) -> list[set[int]]:
    """Keys of every query by a rule of two places."""
    return [{k for k, letter in enumerate(TEXT) if letter != "p" and rule(q, k)} for q in range(len(TEXT))]  # type: ignore[operator]


def is_image(place: int) -> bool:
    return TEXT[place] in "ij"


def test_croc_lets_images_see_each_other_both_ways() -> None:
    assert seen(CrocAttention()) == wanted(lambda q, k: k <= q or (is_image(q) and is_image(k)))
    asked = [letter in "siqj" for letter in TEXT]
    assert seen(CrocAttention(prompt=True)) == wanted(lambda q, k: k <= q or (asked[q] and asked[k]))


def test_frames_are_blocks() -> None:
    assert seen(FrameBlockAttention()) == wanted(lambda q, k: k <= q or (is_image(q) and TEXT[q] == TEXT[k]))


def test_composite_attention_hides_images_from_images_but_for_themselves() -> None:
    assert seen(CompositeAttention()) == wanted(lambda q, k: k <= q and (not is_image(q) or q == k))


@pytest.mark.parametrize(
    ("looking", "hidden"),
    [("question", "image"), ("last", "question"), ("image", "system"), ("last", "image"), ("question", "question")],
)
def test_knocked_out_edges_are_those_named(looking: str, hidden: str) -> None:
    last = 10
    parts = {
        "system": {1},
        "image": {n for n in range(len(TEXT)) if is_image(n)},
        "question": {6, 9},
        "last": {last},
    }
    found = seen(Knockout(looking, hidden, [2]))  # type: ignore[arg-type]
    assert found == wanted(lambda q, k: k <= q and not (q in parts[looking] and k in parts[hidden] and q != k))
    assert found != edges(causal(TOKENS))


def test_groups_are_shifted_by_half_in_half_of_the_heads_and_never_go_round() -> None:
    for head, move in ((0, 0), (1, 0), (2, 2), (3, 2)):
        group = [(n - 1 + move) // 4 for n in range(len(TEXT))]  # 12 tokens in 3 groups of 4
        assert seen(ShiftedGroups(3), head=head) == wanted(lambda q, k, g=group: k <= q and g[q] == g[k])
        found = seen(SinkGroups(3, sinks=2), head=head)
        assert found == wanted(lambda q, k, g=group: k <= q and (g[q] == g[k] or k - 1 < 2))


def test_strided_blocks_are_local_or_every_so_many_of_a_head() -> None:
    program = StridedBlocks(block=2, local=2, stride=3, dense=1, shift=1)
    for head in range(4):
        block = [(n - 1) // 2 for n in range(len(TEXT))]

        def rule(q: int, k: int, head: int = head, block: list[int] = block) -> bool:
            return k <= q and (head < 1 or block[q] - block[k] < 2 or (block[k] + head) % 3 == 0)

        assert seen(program, head=head) == wanted(rule)
    assert [layer for layer in range(4) if StridedBlocks(first_layer=2).at(layer, 4)] == [2, 3]


def test_spans_grow_with_the_text() -> None:
    spans = [[1, 0], [0, 0.5], [2, 0.25], [100, 0]]
    program = ElasticSpans({2: spans}, sinks=1)
    for head, (a, b) in enumerate(spans):

        def rule(q: int, k: int, a: float = a, b: float = b) -> bool:
            return k <= q and (q - k < max(a + b * q, 1) or k == 1)  # place 1 is the first, so n is q

        assert seen(program, head=head) == wanted(rule)
    with pytest.raises(ValueError, match="1 spans in layer 2, of 4 heads"):
        ElasticSpans({2: [[1, 0]]}).allow(causal(TOKENS), TOKENS, TOKENS, WHERE)


def test_patches_see_a_window_of_their_own_crop() -> None:
    def rule(q: int, k: int) -> bool:
        if not (is_image(q) and is_image(k)):
            return k <= q
        place = {n: divmod(i, 2) for n, i in ((2, 0), (3, 1), (4, 2), (5, 3), (7, 0), (8, 1))}
        near = all(abs(a - b) <= 0 for a, b in zip(place[q], place[k], strict=True))
        return TEXT[q] == TEXT[k] and near

    assert seen(NeighbourWindow(1)) == wanted(rule)
    wide = seen(NeighbourWindow(3))
    assert wide[2] == {1, 2, 3, 4, 5} and wide[7] == {1, 6, 7, 8}


def test_the_question_sees_images_of_the_highest_focus() -> None:
    before = attending(TOKENS, heads=3, seed=4)
    weights = before.weights().mean(1)[0]
    question, images = [6, 9, 10], [n for n in range(len(TEXT)) if is_image(n)]
    focus = {(t, v): sum(float(weights[t, w] * weights[w, v]) for w in question) for t in question for v in images}

    def rule(q: int, k: int) -> bool:
        if k > q or q not in question or k not in images:
            return k <= q
        best = sorted(images, key=lambda v: -focus[q, v])[:3]
        return k in best

    assert seen(CorrelationMask([2], ratio=0.5), where=WHERE._replace(before=before)) == wanted(rule)
    assert seen(CorrelationMask([2])) == edges(causal(TOKENS))  # an answer sees all
    with pytest.raises(ValueError, match="from 1 on"):
        CorrelationMask([0])
