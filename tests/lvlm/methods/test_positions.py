"""Positions in time: what is added, and that a model computes with them as if it had been given them."""

from __future__ import annotations

import pytest
import torch

from blocks.edits import FramePositions
from blocks.tokens import PyramidDrop
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_maps import token_map
from tests.tiny_methods import tried
from tests.tiny_tokens import IMAGE


def test_tokens_of_a_frame_share_its_number() -> None:
    tokens = token_map("psiiqjjjqqa", "ppppssqiiqa")
    assert FramePositions(2).added(tokens).tolist() == [
        [0, 0, 2, 2, 2, 4, 4, 4, 4, 4, 4],
        [0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2],
    ]


def test_a_model_reads_them_as_positions() -> None:
    model, (sample, _) = tried("llava")
    ids = sample["input_ids"]
    places = torch.arange(ids.shape[1]) + 5 * ((ids == IMAGE).cumsum(1) > 0)
    labels = ids.index_fill(1, torch.arange(ids.shape[1] - 2), -100)
    with torch.no_grad():
        wanted = model(**sample, position_ids=places).logits
        with Recipe([FramePositions(5)]).on(model):
            for options in ({}, {"labels": labels}, {"attention_mask": None}):
                torch.testing.assert_close(model(**{**sample, **options}).logits, wanted)
        assert not torch.allclose(model(**sample).logits, wanted, atol=1e-3)


def test_what_it_does_not_go_with_is_named() -> None:
    with pytest.raises(ValueError, match="PyramidDrop numbers positions anew, to which FramePositions adds"):
        Recipe([FramePositions(), PyramidDrop([3])])
    with pytest.raises(ValueError, match="weight is whole and from 1"):
        FramePositions(0)
    model, (sample, _) = tried("qwen2_5_vl")
    with pytest.raises(ValueError, match="several axes"), Recipe([FramePositions()]).on(model), torch.no_grad():
        model(**sample)
