"""Attention weights and outputs after edits, against their equations written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from blocks.edits import (
    DualSoftmax,
    InactiveHeads,
    SinkCalibration,
    SoftplusAttention,
    TemperatureScale,
    VisualBoost,
)
from tests.tiny_maps import attending, plain_kernel, rows_of, token_map

TEXT = "psiiiiqqqaa"
TOKENS = token_map(TEXT)
PROMPT = range(1, 9)


def test_sinks_of_chosen_heads_give_to_all_others_in_proportion() -> None:
    told = attending(TOKENS, heads=3, seed=1)
    weights = told.weights()
    edit = SinkCalibration({2: [0, 2]}, beta=0.4, threshold=0.12)
    marks = edit.measure(told, 2)
    new = edit.weights(rows_of(told, marks=marks))
    found = 0
    for head in range(3):
        mean = [sum(float(weights[0, head, q, k]) for q in PROMPT) / len(PROMPT) for k in range(len(TEXT))]
        sinks = {k for k in PROMPT if k != 1 and mean[k] > 0.12}
        found += len(sinks)
        assert {int(k) for k in marks[0, :, head].nonzero()} == sinks
        for query in range(1, len(TEXT)):
            row = weights[0, head, query].tolist()
            taken = sum(row[k] for k in sinks) if head != 1 else 0.0
            if 0 < taken < 1:
                row = [w * 0.4 if k in sinks else w + 0.6 * taken * w / (1 - taken) for k, w in enumerate(row)]
            assert new[0, head, query].tolist() == pytest.approx(row, abs=1e-6)
    assert found >= 3 and torch.allclose(new[:, :, 1:].sum(-1), torch.ones(()))
    by_length = SinkCalibration({2: [0]}, alpha=0.12 * len(PROMPT)).measure(told, 2)
    assert torch.equal(by_length, marks)
    with pytest.raises(ValueError, match="names no layer"):
        SinkCalibration({})


def test_logits_of_images_rise_by_where_the_tower_looks() -> None:
    told = attending(TOKENS, heads=2, seed=2)
    seen = torch.zeros(1, len(TEXT))
    seen[0, 2:6] = torch.tensor([0.1, 0.4, 0.2, 0.3])
    new = VisualBoost(top=0.25).weights(rows_of(told, seen=seen))
    logits, weights = told.logits(), told.weights()
    share = {2: 0.3, 3: 0.7, 4: 0.3, 5: 0.3}
    for head in range(2):
        for query in range(1, len(TEXT)):
            if TEXT[query] != "a" and query != 8:  # no word comes out of it
                assert torch.equal(new[0, head, query], weights[0, head, query])
                continue
            row = logits[0, head, query].tolist()
            raised = [math.exp(a + share.get(k, 0) * abs(a)) if 1 <= k <= query else 0.0 for k, a in enumerate(row)]
            wanted = [a / sum(raised) for a in raised]
            assert new[0, head, query].tolist() == pytest.approx(wanted, abs=1e-5)
    assert [layer for layer in range(5) if VisualBoost().at(layer, 5)] == [2, 3, 4]


def test_heads_without_a_part_in_seeing_lose_images_without_getting_anything_for_it() -> None:
    told = attending(TOKENS, heads=3)
    old = told.weights()
    new = InactiveHeads({2: [1]}).weights(rows_of(told))
    wanted = old.clone()
    wanted[:, 1, :, 2:6] = 0
    wanted[:, 1, 2:6] = 0
    assert torch.equal(new, wanted)
    with pytest.raises(ValueError, match="give heads or an artefact"):
        InactiveHeads()


def values(told: object, groups: int = 1) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(1, groups, len(TEXT), 3)


def test_a_temperature_divides_logits() -> None:
    told, value = attending(TOKENS), values(0)
    found = TemperatureScale(0.5).attend(plain_kernel, told, value, 2)
    weights = (told.logits() / 0.5).masked_fill(~told.allowed, -1e9).softmax(-1)
    torch.testing.assert_close(found[:, 1:], (weights @ value).transpose(1, 2)[:, 1:])


@pytest.mark.parametrize("whole", [False, True])
def test_two_softmaxes_are_added(whole: bool) -> None:
    told, value = attending(TOKENS, seed=3), values(0)
    found = DualSoftmax(whole_images=whole).attend(plain_kernel, told, value, 2)
    logits = told.logits()
    for head in range(2):
        for query in range(1, len(TEXT)):
            images = [k for k in range(2, 6) if k <= query]
            if TEXT[query] == "i" and not whole:
                images = [query]
            texts = [k for k in range(1, query + 1) if TEXT[k] != "i"]
            wanted = torch.zeros(3)
            for keys in filter(None, (images, texts)):
                wanted += logits[0, head, query, keys].softmax(-1) @ value[0, 0, keys]
            torch.testing.assert_close(found[0, query, head], wanted)


@pytest.mark.parametrize(("power", "length"), [(1.0, None), (3.0, 8)])
def test_softplus_weights_are_sharpened_and_sum_to_one(power: float, length: int | None) -> None:
    told, value = attending(TOKENS, seed=6), values(0)
    found = SoftplusAttention(power, length).attend(plain_kernel, told, value, 2)
    logits = told.logits()
    for head in range(2):
        for query in range(1, len(TEXT)):
            keys = list(range(1, query + 1))
            scale = 1.0 if length is None else math.log(max(len(keys), 2)) / math.log(length)
            soft = [math.log1p(math.exp(scale * float(logits[0, head, query, k]))) for k in keys]
            sharp = [(a / sum(soft)) ** power for a in soft]
            wanted = sum(a / sum(sharp) * value[0, 0, k] for a, k in zip(sharp, keys, strict=True))
            torch.testing.assert_close(found[0, query, head], wanted, rtol=1e-4, atol=1e-5)
