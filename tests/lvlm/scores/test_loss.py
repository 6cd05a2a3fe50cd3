"""Losses without layers against models that really lack them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import GreedyLossIncrease, LossIncrease, score_layers
from sparsight.lvlm.scores.loss import with_each_changed
from sparsight.lvlm.surgery.remove import remove_layers
from tests.tiny_batches import FAMILIES, Batch, batch_of, one_by_one, padded_left, text_only
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_rows import few


def loss_without(model: Any, batch: Batch, removed: Sequence[int]) -> float:
    """What transformers says is the loss of a copy that lost these layers."""
    pruned = copy.deepcopy(model)
    remove_layers(pruned, removed)
    with torch.no_grad():
        return float(pruned(**batch["inputs"], labels=batch["labels"], use_cache=False).loss)


def brute_force(model: Any, batch: Batch, *, count: int, protected: Sequence[int]) -> list[int]:
    removed: list[int] = []
    for _ in range(count):
        left = [layer for layer in range(6) if layer not in (*removed, *protected)]
        removed.append(min(left, key=lambda layer: loss_without(model, batch, [*removed, layer])))
    return removed


@pytest.mark.parametrize("family", few(FAMILIES, "llava", "qwen2_5_vl"))
def test_losses_and_greedy_order_are_those_of_models_that_lost_the_layers(family: str) -> None:
    model = tiny_lvlm(family)
    batch = batch_of(family, model)
    table = score_layers(model, [batch], [LossIncrease(), GreedyLossIncrease(3)])
    whole = loss_without(model, batch, [])
    expected = [loss_without(model, batch, [layer]) - whole for layer in range(6)]
    assert table.values["loss_increase"] == pytest.approx(expected, abs=1e-5)
    assert min(map(abs, expected)) > 0.001
    order = brute_force(model, batch, count=3, protected=(0, 5))
    found = table.details["greedy_loss_increase"]
    assert found["removal_order"] == order
    assert found["losses"] == pytest.approx([loss_without(model, batch, order[:n]) for n in range(4)], abs=1e-5)
    numbers = [float(order.index(layer)) if layer in order else 3.0 for layer in range(6)]
    assert table.values["greedy_loss_increase"] == numbers


def test_padding_side_and_batching_change_nothing() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    batch["labels"][1, -12:] = -100  # two answer tokens here and three there: tokens count, not samples
    expected = score_layers(model, [batch], [LossIncrease()]).values["loss_increase"]
    for batches in ([padded_left(batch)], one_by_one(batch)):
        assert score_layers(model, batches, [LossIncrease()]).values["loss_increase"] == pytest.approx(
            expected, abs=1e-5
        )


def test_a_layer_that_is_off_anyway_is_not_missed() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    with bypassed(find_parts(model).layers, [2]):
        values = score_layers(model, [batch], [LossIncrease()]).values["loss_increase"]
    expected = loss_without(model, batch, [2, 4]) - loss_without(model, batch, [2])
    assert values[2] == pytest.approx(0, abs=1e-6)
    assert values[4] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"])
def test_images_are_encoded_once_and_layers_below_the_change_are_not_run_again(family: str) -> None:
    model = tiny_lvlm(family)
    parts, inputs = find_parts(model), tiny_inputs(family, model)
    runs = {name: 0 for name in ("vision", *map(str, range(6)))}

    def count(module: torch.nn.Module, name: str) -> None:
        def forward(*args: Any, original: Any = module.forward, **kwargs: Any) -> Any:
            runs[name] += 1
            return original(*args, **kwargs)

        module.__dict__["forward"] = forward

    count(next(iter(parts.vision.values())), "vision")
    for index, layer in enumerate(parts.layers):
        count(layer, str(index))

    def logits() -> Tensor:
        return model(**inputs, use_cache=False).logits

    with torch.no_grad():
        whole, others = with_each_changed(parts, range(6), logits, lambda layer: bypassed(parts.layers, [layer]))
        assert list(runs.values()) == [1, *range(1, 7)]
        torch.testing.assert_close(logits(), whole)
        for layer, other in enumerate(others):
            with bypassed(parts.layers, [layer]):
                torch.testing.assert_close(logits(), other)


def test_what_cannot_be_measured_is_refused() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    with pytest.raises(ValueError, match="needs calibration batches with labels"):
        score_layers(model, [{"inputs": batch["inputs"]}], [LossIncrease()])
    with pytest.raises(ValueError, match="no labelled answers"):
        nothing = {**text_only(batch), "labels": torch.full_like(text_only(batch)["labels"], -100)}
        score_layers(model, [nothing], [LossIncrease()])
    with pytest.raises(ValueError, match="5 layers cannot go: 2 of 6 are protected"):
        score_layers(model, [batch], [GreedyLossIncrease(5)])
    with pytest.raises(ValueError, match=r"protected layers \[6\] do not exist"):
        score_layers(model, [batch], [GreedyLossIncrease(1, protected=[6])])
    with pytest.raises(ValueError, match="remove is a number of layers from 1; got 0"):
        GreedyLossIncrease(0)
