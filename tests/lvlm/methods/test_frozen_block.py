"""A decoder layer as one of the vision encoder: against the layer's own code, without positions and without a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blocks.edits import FeedForwardCut
from blocks.tokens import FrozenBlock
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_methods import stirred, tried
from tests.tiny_tokens import IMAGE


def entering(model: Any, sample: dict[str, Any], recipe: Recipe | None) -> torch.Tensor:
    """Image tokens (N, C) as they enter the decoder."""
    seen: list[torch.Tensor] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            if recipe is None:
                model(**sample)
            else:
                with recipe.on(model):
                    model(**sample)
    finally:
        hook.remove()
    return seen[0][0, sample["input_ids"][0] == IMAGE]


def test_image_tokens_pass_through_a_layer_without_positions() -> None:
    model, (sample, _) = tried("llava")
    method = FrozenBlock(4)
    stirred(method, 0.1)
    found = entering(model, sample, Recipe([method, FeedForwardCut(0.5)]))  # which changes the layer in its place alone
    plain = entering(model, sample, None)
    before = method.held["before"](plain)[None]
    cos, sin = torch.ones(1, len(plain), 8), torch.zeros(1, len(plain), 8)
    layer: Any = model.model.language_model.layers[4]
    width = layer.self_attn.head_dim
    mask = torch.zeros(1, 1, len(plain), len(plain))
    with torch.no_grad():
        tables = (cos[..., :1].expand(-1, -1, width), sin[..., :1].expand(-1, -1, width))
        inside = layer(before, attention_mask=mask, position_embeddings=tables)
        wanted = method.held["behind"](inside[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_layers_of_more_parts_are_refused() -> None:
    for family, layer, told in (
        ("gemma3", -1, "FrozenBlock needs attention of four projections between two norms"),
        ("qwen3_vl", 2, "four projections between two norms in layer 2"),
        ("llava", 6, "FrozenBlock takes layer 6 for an encoder's; there are 0 to 5"),
    ):
        with pytest.raises(ValueError, match=told):
            Recipe([FrozenBlock(layer)]).check(tried(family)[0])
