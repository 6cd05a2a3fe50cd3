"""Switched-off layers against a model that does not have them."""

from __future__ import annotations

import pytest
import torch

from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.surgery.remove import remove_layers
from tests.tiny_families import FAMILIES
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm


@pytest.mark.parametrize("family", FAMILIES)
def test_bypassed_layers_are_as_good_as_removed(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    off = [3, 4] if family.startswith("qwen3_vl") else [0, 3]  # the first layers of Qwen3-VL take image features
    with torch.no_grad():
        whole = model(**inputs, use_cache=False).logits
        with bypassed(find_parts(model).layers, off):
            without = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, whole, rtol=0, atol=0)
        remove_layers(model, off)
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, without)
    assert (whole - without).abs().max() > 0.01


def test_gradients_flow_through_a_bypassed_layer_and_not_into_it() -> None:
    model = tiny_lvlm("llava")
    layers = find_parts(model).layers
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with bypassed(layers, [1]):
        model(**tiny_inputs("llava", model), use_cache=False).logits.sum().backward()
    assert all(p.grad is None for p in layers[1].parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layers[0].parameters())


def test_a_cache_is_refused() -> None:
    model = tiny_lvlm("llava")
    with bypassed(find_parts(model).layers, [1]), pytest.raises(ValueError, match="use_cache=False"):
        model(**tiny_inputs("llava", model), use_cache=True)


def test_layers_come_back_after_an_error_and_keep_a_forward_of_their_own() -> None:
    layers = find_parts(tiny_lvlm("llava")).layers
    own = layers[1].forward
    layers[1].forward = own
    with pytest.raises(RuntimeError, match="stop"), bypassed(layers, [0, 1]):
        assert layers[0].forward is layers[1].forward
        raise RuntimeError("stop")
    assert layers[1].__dict__["forward"] is own
    assert "forward" not in layers[0].__dict__
