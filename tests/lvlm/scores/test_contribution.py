"""Layer contribution against a forward pass in which a layer is rewritten by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.lvlm.model.bypass import bypassed, replaced_forward
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import LayerContribution, score_layers
from tests.tiny_batches import FAMILIES, Batch, batch_of, one_by_one, padded_left
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import IMAGE

BOTH = [LayerContribution("image"), LayerContribution("text")]


def answers(model: Any, batch: Batch) -> Tensor:
    """Probabilities (N, V), float64, after every token that an answer token follows."""
    rows = []
    with torch.no_grad():
        for single in one_by_one(batch):
            probabilities = model(**single["inputs"], use_cache=False).logits[0].double().softmax(-1)
            rows += [probabilities[t] for t in (single["labels"][0, 1:] != -100).nonzero()[:, 0]]
    return torch.stack(rows)


def by_hand(model: Any, batch: Batch, layer: int, *, image: bool) -> float:
    module = find_parts(model).layers[layer]
    original = module.forward
    ids = iter([single["inputs"]["input_ids"] for single in one_by_one(batch)])

    def forward(states: Tensor, **kwargs: Any) -> Tensor:
        changed = original(states, **kwargs)
        for token, number in enumerate(next(ids)[0]):
            if (number == IMAGE) == image:
                changed[0, token] = states[0, token]
        return changed

    whole = answers(model, batch)
    with replaced_forward(module, forward):
        other = answers(model, batch)
    return float((whole * (whole / other).log()).sum(1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_are_those_of_layers_rewritten_by_hand(family: str) -> None:
    model = tiny_lvlm(family)
    batch = batch_of(family, model)
    values = score_layers(model, [batch], BOTH).values
    for layer in (0, 3, 5):
        for kind in ("image", "text"):
            expected = by_hand(model, batch, layer, image=kind == "image")
            assert values[f"layer_contribution_{kind}"][layer] == pytest.approx(expected, rel=1e-3, abs=2e-6)
    last = values["layer_contribution_image"][-1]
    assert last == pytest.approx(0, abs=1e-9), "nobody reads the image tokens of the last layer"
    assert min(number for number in values["layer_contribution_text"] if number is not None) > 1e-3


def test_padding_side_and_batching_change_nothing() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    expected = score_layers(model, [batch], BOTH).values
    for batches in ([padded_left(batch)], one_by_one(batch)):
        for name, numbers in score_layers(model, batches, BOTH).values.items():
            assert numbers == pytest.approx(expected[name], abs=1e-6)


def test_a_layer_that_changes_nothing_contributes_nothing() -> None:
    model = tiny_lvlm("llava")
    with bypassed(find_parts(model).layers, [2]):
        values = score_layers(model, [batch_of("llava", model)], BOTH).values
    assert [numbers[2] for numbers in values.values()] == pytest.approx([0, 0], abs=1e-9)


def test_prompts_alone_are_compared_at_their_last_token() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    last = torch.full_like(batch["labels"], -100)
    for row, length in enumerate(batch["inputs"]["attention_mask"].sum(1).tolist()):
        last[row, length - 1] = 7  # an answer token right after the last one of a prompt that is one token shorter
    shorter = {**batch["inputs"], "attention_mask": batch["inputs"]["attention_mask"].clone()}
    for row, length in enumerate(batch["inputs"]["attention_mask"].sum(1).tolist()):
        shorter["attention_mask"][row, length - 1] = 0
    prompts = score_layers(model, [{"inputs": shorter}], BOTH).values
    answered = score_layers(model, [{"inputs": batch["inputs"], "labels": last}], BOTH).values
    for name, numbers in prompts.items():
        assert numbers == pytest.approx(answered[name], abs=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    with pytest.raises(ValueError, match="no labelled answers"):
        score_layers(model, [{**batch, "labels": torch.full_like(batch["labels"], -100)}], BOTH)
    with pytest.raises(ValueError, match="tokens is one of image, text; got 'all'"):
        LayerContribution("all")  # type: ignore[arg-type]
