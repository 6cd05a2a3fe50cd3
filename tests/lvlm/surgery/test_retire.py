"""Which layers may leave, and a model that loses them for a while."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import AngularDistance, BlockInfluence, GreedyLossIncrease
from sparsight.lvlm.surgery.retire import LayerPruning, RetiredLayers, removable_layers
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm


def removable(family: str = "llava", tuned: tuple[int, ...] = (1, 4), **options: object) -> list[int]:
    pruning = LayerPruning(score=BlockInfluence(), **options)  # type: ignore[arg-type]
    return removable_layers(tiny_lvlm(family), pruning, depth=6, tuned=tuned, tuned_before=[2])


def test_the_region_and_the_ends_are_protected_unless_told_otherwise() -> None:
    assert removable() == [3]
    assert removable(protect_ends=False) == [0, 3, 5]
    assert removable(protect_tuned=False) == [1, 2, 3, 4]
    assert removable(protect_tuned=False, protected=[2]) == [1, 3, 4]


def test_layers_that_the_architecture_ties_stay() -> None:
    assert removable("qwen3_vl", protect_tuned=False, protect_ends=False) == [2, 3, 4, 5]


def test_protecting_everything_or_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="all 6 layers are protected"):
        removable(tuned=tuple(range(6)))
    with pytest.raises(ValueError, match="0 to 5"):
        removable(protected=[6])


def test_a_score_that_removes_by_itself_is_no_score_for_a_schedule() -> None:
    with pytest.raises(ValueError, match="LossIncrease here with `rescore: true`"):
        LayerPruning(score=GreedyLossIncrease(2))
    with pytest.raises(ValueError, match="window 2 is about blocks"):
        LayerPruning(score=AngularDistance(window=2))
    assert LayerPruning(score=AngularDistance()).score.name == "angular_distance_last"


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_layers_are_taken_out_for_a_while(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    parts = find_parts(model)
    config = copy.deepcopy(model.config.to_dict())
    names = [name for name, _ in model.named_parameters()]
    retired = RetiredLayers(model, parts)
    with torch.no_grad():
        whole = model(**inputs).logits
        with bypassed(parts.layers, [2, 3]):
            wanted = model(**inputs, use_cache=False).logits
        retired.set([3, 2])
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, wanted)
        with retired.taken_out():
            torch.testing.assert_close(model(**inputs).logits, wanted)
            assert len(find_parts(model).layers) == 4
        assert model.config.to_dict() == config and [name for name, _ in model.named_parameters()] == names
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, wanted)
        with pytest.raises(ValueError, match="use_cache=False"):
            model(**inputs, use_cache=True)
        retired.set([])
        torch.testing.assert_close(model(**inputs).logits, whole)
