"""Which tokens policies keep, and what a map does with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blocks.tokens import FastV, PyramidDrop, TokenMap
from blocks.tokens.token_map import ANSWER, IMAGE, PAD, QUESTION, SYSTEM, chosen, put, rows

KINDS = torch.tensor(
    [
        [PAD, PAD, SYSTEM, IMAGE, IMAGE, IMAGE, IMAGE, QUESTION, QUESTION, ANSWER],
        [SYSTEM, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, QUESTION, QUESTION, PAD, PAD],
    ]
)


def tokens() -> TokenMap:
    place = torch.arange(10).expand(2, 10)
    nowhere = torch.full_like(place, -1)
    return TokenMap(KINDS, nowhere, nowhere, nowhere, nowhere, place)


def attention() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(2, 4, 10)


def wanted(keep: list[int]) -> list[set[int]]:
    """For each sample, the image tokens of the highest mean attention, as many as told."""
    scores = attention().mean(1)
    found = []
    for sample, count in enumerate(keep):
        places = (KINDS[sample] == IMAGE).nonzero()[:, 0].tolist()
        found.append(set(sorted(places, key=lambda n: -float(scores[sample, n]))[:count]))
    return found


@pytest.mark.parametrize(("ratio", "counts"), [(0.5, [2, 2]), (0.75, [3, 3]), (0.2, [1, 1]), (1.0, [4, 5])])
@pytest.mark.parametrize("policy", [FastV, PyramidDrop])
def test_most_attended_image_tokens_stay_and_all_text(policy: type, ratio: float, counts: list[int]) -> None:
    keep = policy(ratio=ratio).keep(tokens(), attention())
    assert bool(keep[KINDS != IMAGE].all())
    for sample, expected in enumerate(wanted(counts)):
        assert set((keep[sample] & (KINDS[sample] == IMAGE)).nonzero()[:, 0].tolist()) == expected


def test_layers_of_policies() -> None:
    assert [layer for layer in range(32) if PyramidDrop().at(layer, 32)] == [8, 16, 24]
    assert [layer for layer in range(6) if PyramidDrop().at(layer, 6)] == [1, 3, 4]
    assert [layer for layer in range(6) if PyramidDrop([2, 5]).at(layer, 6)] == [2, 5]
    assert [layer for layer in range(6) if FastV(3).at(layer, 6)] == [3]
    assert FastV().positions == "keep" and PyramidDrop().positions == "renumber"
    with pytest.raises(ValueError, match="from 1 on"):
        FastV(0)
    with pytest.raises(ValueError, match="from 1 on"):
        PyramidDrop([0, 4])


def test_the_last_token_of_a_prompt_comes_before_answer_and_padding() -> None:
    assert tokens().last.tolist() == [8, 7]


def test_chosen_tokens_keep_their_order_and_short_samples_begin_with_what_counts_as_padding() -> None:
    keep = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    index, valid = chosen(keep)
    assert index.tolist() == [[1, 3, 4], [2, 2, 2]] and valid.tolist() == [[True] * 3, [False, False, True]]
    values = torch.arange(10.0).reshape(2, 5, 1)
    assert rows(values, index)[..., 0].tolist() == [[1, 3, 4], [7, 7, 7]]
    back = put(torch.zeros(2, 5, 1), index, valid, rows(values, index))[..., 0]
    assert back.tolist() == [[0, 1, 0, 3, 4], [0, 0, 7, 0, 0]]


def test_a_map_grows_by_answers_and_fits_what_a_cache_holds() -> None:
    grown = tokens().grown(2, 10)
    assert grown.kind[:, 10:].eq(ANSWER).all() and grown.place[0, 10:].tolist() == [10, 11]
    assert grown.fitted(14).kind[0].tolist() == [*KINDS[0].tolist(), ANSWER, ANSWER, PAD, PAD]
    assert grown.fitted(3).place[0].tolist() == [9, 10, 11]
