"""Heads, feed-forward parts and logits of two passes after edits, against their equations."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from blocks.edits import FeedForwardCut, ImageGuidance, OutlierContrast, VisionAwareHeads, VisualExit
from blocks.tokens import Crop
from tests.tiny_maps import token_map


def test_heads_above_the_median_speak_louder_but_for_outliers() -> None:
    torch.manual_seed(0)
    heads, others = torch.randn(3, 8, 4), torch.randn(3, 8, 4)
    heads[1, 2] += 30  # an outlier
    found = VisionAwareHeads(2.0).scales(heads, others)
    for sample in range(3):
        apart = [math.dist(a, b) for a, b in zip(heads[sample].tolist(), others[sample].tolist(), strict=True)]
        most = statistics.mean(apart) + statistics.stdev(apart)
        usual = sorted(a for a in apart if a <= most)
        median = usual[(len(usual) - 1) // 2]
        assert found[sample].tolist() == [2.0 if median < a <= most else 1.0 for a in apart]
    assert found[1, 2] == 1.0


def test_image_tokens_use_the_first_neurons_alone() -> None:
    torch.manual_seed(0)
    module, tokens = (
        LlamaMLP(LlamaConfig(hidden_size=6, intermediate_size=8, num_attention_heads=2)),
        token_map("psiiqi"),
    )
    hidden = torch.randn(1, 6, 6)
    found = FeedForwardCut(0.5).feed(module.forward, module, hidden, tokens)
    for place, letter in enumerate("psiiqi"):
        x = hidden[0, place]
        count = 4 if letter == "i" else 8
        inner = torch.nn.functional.silu(module.gate_proj.weight[:count] @ x) * (module.up_proj.weight[:count] @ x)
        torch.testing.assert_close(found[0, place], module.down_proj.weight[:, :count] @ inner)
    with pytest.raises(ValueError, match="knows no neurons of Sequential"):
        FeedForwardCut().feed(nn.Identity(), nn.Sequential(nn.Linear(6, 6)), hidden, tokens)


def test_all_image_tokens_leave_at_once() -> None:
    assert [layer for layer in range(6) if VisualExit(4).at(layer, 6)] == [4]
    assert not VisualExit.looks


def test_contrast_is_taken_among_plausible_words() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 7) * 3, torch.randn(2, 7)
    for branch, rule in (
        (OutlierContrast(0.5, beta=0.1), lambda a, b: 1.5 * a - 0.5 * b),
        (ImageGuidance(3.0, beta=0.1), lambda a, b: b + 3 * (a - b)),
        (ImageGuidance(1.5), lambda a, b: 1.5 * a - 0.5 * b),
    ):
        found, beta = branch.combine(one, other), branch.beta
        for row in range(2):
            probable = one[row].softmax(-1)
            for word in range(7):
                if probable[word] >= beta * probable.max():
                    assert float(found[row, word]) == pytest.approx(
                        rule(float(one[row, word]), float(other[row, word]))
                    )
                else:
                    assert found[row, word] < found[row].max() - 9000 and found[row].isfinite().all()


def test_the_second_pass_shows_outliers_or_nothing() -> None:
    attention = torch.rand(3, 9)
    crop = Crop(torch.randn(9, 5), attention, None, 0)
    best = sorted(range(9), key=lambda n: -float(attention[:, n].mean()))[:4]
    assert OutlierContrast(outliers=4).reducer().reduce(crop).keep.tolist() == sorted(best)
    assert ImageGuidance().reducer().reduce(crop).keep.tolist() == []
