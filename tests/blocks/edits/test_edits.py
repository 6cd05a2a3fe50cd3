"""Masks, attention weights and heads after edits, against their equations written out slowly."""

from __future__ import annotations

import pytest
import torch

from blocks.edits import HeadAblation, ModalityMutualAttention, VisualAttentionRedistribution
from blocks.edits.base import Rows, Where
from blocks.tokens import TokenMap
from blocks.tokens.token_map import ANSWER, IMAGE, PAD, QUESTION, SYSTEM

KINDS = [PAD, SYSTEM, IMAGE, IMAGE, QUESTION, IMAGE, QUESTION, ANSWER, ANSWER]
SINKS = [1, 3, 6]


def tokens() -> TokenMap:
    kind = torch.tensor([KINDS])
    nowhere = torch.full_like(kind, -1)
    return TokenMap(kind, nowhere, nowhere, nowhere, nowhere, torch.arange(len(KINDS))[None])


def causal() -> torch.Tensor:
    return torch.ones(len(KINDS), len(KINDS), dtype=torch.bool).tril()[None, None] & tokens().present[:, None, None]


def test_images_see_the_question_and_no_answer() -> None:
    found = ModalityMutualAttention().allow(causal(), tokens(), tokens(), Where())[0, 0]
    for query, looks in enumerate(KINDS):
        for key, seen in enumerate(KINDS):
            wanted = seen != PAD and (key <= query or (looks == IMAGE and seen == QUESTION))
            assert bool(found[query, key]) == wanted, (query, key)


def redistributed(row: list[float], *, share: float, image: float, rho: float) -> list[float]:
    """One row of attention weights of text after the image, by the paper's words."""
    on_image = sum(w for w, kind in zip(row, KINDS, strict=True) if kind == IMAGE)
    free = {n for n, kind in enumerate(KINDS) if kind == IMAGE and n not in SINKS}
    on_free = sum(row[n] for n in free)
    if on_image < image or on_free / on_image < rho:
        return row
    budget = sum((1 - share) * row[n] for n in SINKS)
    return [w * share if n in SINKS else w + budget * w / on_free if n in free else w for n, w in enumerate(row)]


@pytest.mark.parametrize(("image", "rho"), [(0.2, 0.5), (0.35, 0.5), (0.2, 0.75), (0.0, 0.0)])
def test_sinks_give_and_the_image_takes(image: float, rho: float) -> None:
    torch.manual_seed(0)
    old = torch.randn(1, 6, len(KINDS), len(KINDS)).masked_fill(~causal(), -1e9).softmax(-1)
    marks = torch.zeros(1, len(KINDS), dtype=torch.bool)
    marks[0, SINKS] = True
    edit = VisualAttentionRedistribution([0], image=image, rho=rho)
    new = edit.weights(Rows(old, old, causal(), tokens(), tokens(), 2, marks))
    changed = 0
    for head in range(6):
        for query, kind in enumerate(KINDS):
            row = old[0, head, query].tolist()
            wanted = redistributed(row, share=0.6, image=image, rho=rho) if kind in (QUESTION, ANSWER) else row
            assert new[0, head, query].tolist() == pytest.approx(wanted, abs=1e-6)
            changed += wanted != row
    assert 0 < changed <= 24
    torch.testing.assert_close(new[:, :, 1:].sum(-1), torch.ones(1, 6, len(KINDS) - 1))
    assert edit.rows(tokens()).tolist() == [4, 6, 7, 8]


def test_sinks_are_large_in_few_channels_against_the_root_mean_square() -> None:
    hidden = torch.ones(1, 3, 1000)
    hidden[0, 1, 7], hidden[0, 2, 8] = -300.0, 300.0
    assert VisualAttentionRedistribution([7, 9]).mark(hidden).tolist() == [[False, True, False]]
    assert VisualAttentionRedistribution([7], tau=40).mark(hidden).tolist() == [[False, False, False]]


def test_which_layers_are_redistributed() -> None:
    edit = VisualAttentionRedistribution([7])
    assert [layer for layer in range(6) if edit.at(layer, 6)] == [2, 3, 4]
    with pytest.raises(ValueError, match="name those in which sinks"):
        VisualAttentionRedistribution([])


def test_ablated_heads_answer_nothing() -> None:
    heads = torch.randn(2, 3, 4, 5, requires_grad=True)
    edit = HeadAblation({1: [0, 2], 3: []})
    found = edit.edit(heads, 1, tokens())
    assert found[:, :, [0, 2]].eq(0).all() and torch.equal(found[:, :, [1, 3]], heads[:, :, [1, 3]])
    found.sum().backward()
    assert heads.grad is not None and heads.grad[:, :, [0, 2]].eq(0).all() and heads.grad[:, :, 1].eq(1).all()
    assert torch.equal(edit.edit(heads, 3, tokens()), heads)
    with pytest.raises(ValueError, match=r"names heads \[4\] in layer 1; there are 0 to 3"):
        HeadAblation({1: [4]}).edit(heads, 1, tokens())
