"""Branches with images of their own: which tokens a second pass sees, what it becomes, and what it is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.edits import RelevantImage, SoftPromptGuidance
from blocks.tokens import Crop, Shape
from lightning_modules import SparseLayerTuning
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_batches import batch_of
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_methods import stirred, tried
from tests.tiny_tokens import IMAGE


def test_parts_like_the_question_are_seen_once_more() -> None:
    torch.manual_seed(0)
    features, text = torch.randn(9, 6), torch.randn(4, 6)
    method = RelevantImage(alpha=2.0, beta=0.1, ratio=0.34)
    found = method.reducer().reduce(Crop(features, None, None, 0, text=text))
    likeness = [sum(float(torch.cosine_similarity(v, t, dim=0)) for t in text) for v in features]
    assert found.keep.tolist() == sorted(sorted(range(9), key=lambda n: -likeness[n])[:3])
    one, other = torch.randn(2, 7) * 3, torch.randn(2, 7)
    mixed = method.combine(one, other)
    for row in range(2):
        chances = one[row].softmax(0)
        allowed = chances >= 0.1 * chances.max()
        torch.testing.assert_close(mixed[row][allowed], (one[row] + 2 * other[row])[allowed])
        assert float(mixed[row].softmax(0)[~allowed].sum()) < 1e-6
    with pytest.raises(ValueError, match="beta is 0 to 1"):
        RelevantImage(beta=2.0)


def test_a_prompt_stands_for_the_image_in_the_second_pass() -> None:
    """Logits are those of a model that reads the prompt's embeddings at the image's first places."""
    model, (sample, _) = tried("llava")
    method = SoftPromptGuidance(3, scale=2.0)
    ids = sample["input_ids"][0]
    places = (ids == IMAGE).nonzero()[:, 0]
    stays = torch.ones_like(ids, dtype=torch.bool)
    stays[places[3:]] = False
    with torch.no_grad(), Recipe([stirred(method)]).on(model):
        found = model(**sample).logits
    prompt = method.held.weight
    embeds = model.get_input_embeddings()(sample["input_ids"]).clone()
    embeds[0, places[:3]] = prompt
    with torch.no_grad():
        one = model(**sample).logits
        kept = stays.nonzero()[:, 0]
        attention_mask = torch.ones_like(kept)[None]
        options = {"attention_mask": attention_mask, "position_ids": kept[None]}
        other = model.lm_head(model.model.language_model(inputs_embeds=embeds[:, stays], **options).last_hidden_state)
    text = kept[~torch.isin(kept, places)]
    where = torch.isin(kept, text)
    torch.testing.assert_close(found[0, text], 2 * one[0, text] - other[0, where], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_prompt_learns_from_batches_that_are_read_with_it(probability: float, tmp_path: Path) -> None:
    base = save_tiny_lvlm(tmp_path / "base", "fast_vlm")
    stages = [TuningStage(steps=1, train=["methods"], lr=0.1)]
    method = SoftPromptGuidance(3, probability=probability)
    module = SparseLayerTuning(base=str(base), stages=stages, recipe=[method])
    batch: dict[str, Any] = {**batch_of("fast_vlm", module.model), "image_keys": [], "index": torch.arange(2)}
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = module.training_step(batch, 0)
    loss.backward()
    assert (float(method.held.weight.grad.abs().max()) > 1e-7) == (probability == 1.0)
    other = dict(batch, inputs={**batch["inputs"], "pixel_values": torch.zeros_like(batch["inputs"]["pixel_values"])})
    blind = float(module.training_step(other, 0).detach())
    assert (blind == pytest.approx(float(loss.detach()), abs=1e-6)) == (probability == 1.0)


def test_what_a_prompt_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="length is from 1"):
        SoftPromptGuidance(0)
    with pytest.raises(ValueError, match="probability is 0 to 1"):
        SoftPromptGuidance(probability=2)
    shape = Shape(depth=2, channels=6, heads=2, key_heads=1, head_channels=3, inner=8)
    held, _ = SoftPromptGuidance(4).fit(shape)
    assert [tuple(part.shape) for part in held.parameters()] == [(4, 6)]
