"""Kept vision features: the same answers, each image computed once, no more memory than allowed."""

from __future__ import annotations

import pytest
import torch

from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.model.vision_cache import VisionCache
from tests.tiny_batches import rows_seen
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm


@pytest.mark.parametrize("family", ["llava", "fast_vlm", "gemma3", "internvl"])
def test_answers_are_the_same_and_images_are_computed_once(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    cache = VisionCache(model, find_parts(model), gib=1)
    with torch.no_grad():
        wanted = model(**inputs).logits
        rows = rows_seen(model)
        for keys, computed in ((["a", "b"], [2]), (["a", "b"], []), (["a", "c"], [1])):
            if keys == ["a", "c"]:
                inputs["pixel_values"] = torch.cat([inputs["pixel_values"][:1], inputs["pixel_values"][1:] + 1])
            rows.clear()
            with cache.serving([[key] for key in keys]):
                got = model(**inputs).logits
            assert rows == computed
            if keys == ["a", "b"]:
                torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(got, model(**inputs).logits)
    assert cache.hits == 3


def test_hidden_states_that_nobody_asks_for_are_not_kept() -> None:
    model = tiny_lvlm("llava")
    cache = VisionCache(model, find_parts(model), gib=1)
    with torch.no_grad(), cache.serving([["a"], ["b"]]):
        model(**tiny_inputs("llava", model))
    states = cache.kept["a"]["hidden_states"]
    assert [state is not None for state in states] == [False, False, True, False]  # the second last


def test_memory_is_not_exceeded() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    whole = VisionCache(model, find_parts(model), gib=1)
    with torch.no_grad(), whole.serving([["a"], ["b"]]):
        wanted = model(**inputs).logits
    one = (2**30 - whole.room) / 2
    small = VisionCache(model, find_parts(model), gib=1.5 * one / 2**30)
    with torch.no_grad():
        for _ in range(2):
            with small.serving([["a"], ["b"]]):
                torch.testing.assert_close(model(**inputs).logits, wanted)
    assert list(small.kept) == ["a"]
    assert small.hits == 1


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_images_that_are_cut_up_are_refused(family: str) -> None:
    model = tiny_lvlm(family)
    cache = VisionCache(model, find_parts(model), gib=1)
    with pytest.raises(ValueError, match=r"vision_cache_gib.*set it to 0"), cache.serving([["a"], ["b"]]):
        model(**tiny_inputs(family, model))
    model(**tiny_inputs(family, model))  # nothing is left behind
