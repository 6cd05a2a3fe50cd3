"""Attention on image tokens against the full maps of eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PaliGemmaConfig

from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import ImageAttention, attention, score_layers
from sparsight.lvlm.scores.attention_tap import Attending, tapped
from tests.tiny_batches import Batch, batch_of, one_by_one, padded_left, text_only
from tests.tiny_families import FAMILIES, HYBRIDS, SIGLIP, TEXT
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_rows import few
from tests.tiny_tokens import IMAGE

ROWS = [ImageAttention("text"), ImageAttention("last")]


def of_full_maps(model: Any, batch: Batch) -> dict[str, list[float]]:
    """Both scores from the maps (h, T, T) that eager attention gives for each sample without padding."""
    before = model.get_decoder().config._attn_implementation
    model.set_attn_implementation("eager")
    masses: dict[str, list[Tensor]] = {"image_attention_text": [], "image_attention_last": []}
    for single in one_by_one(batch):
        is_image = single["inputs"]["input_ids"][0] == IMAGE
        with torch.no_grad():
            maps = model(**single["inputs"], output_attentions=True, use_cache=False).attentions
        on_image = torch.stack([m[0][..., is_image].sum(-1).mean(0) for m in maps])  # (layers, T)
        masses["image_attention_text"].append(on_image[:, ~is_image].mean(1))
        masses["image_attention_last"].append(on_image[:, -1])
    model.set_attn_implementation(before)
    return {name: torch.stack(rows).mean(0).tolist() for name, rows in masses.items()}


@pytest.mark.parametrize("family", few(FAMILIES, "llava", "gemma3", "qwen3_vl", "lfm2_vl"))
def test_rows_are_those_of_the_full_maps(family: str) -> None:
    model = tiny_lvlm(family)
    batch = batch_of(family, model)
    expected = of_full_maps(model, batch)
    for batches in ([batch], [padded_left(batch)], one_by_one(batch)):
        values = score_layers(model, batches, ROWS).values
        for name, numbers in expected.items():
            heard = [number for number in values[name] if number is not None]
            assert heard == pytest.approx(numbers, abs=2e-5), name
            attending = [layer for layer, number in enumerate(values[name]) if number is not None]
            assert attending == ([2, 5] if family in HYBRIDS else [*range(6)])
            assert min(numbers) > 0.01


def test_the_map_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    at_once = score_layers(model, [batch], ROWS).values
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", 3)
    for name, numbers in score_layers(model, [batch], ROWS).values.items():
        assert numbers == pytest.approx(at_once[name], abs=1e-6)


def test_soft_capped_logits_are_capped() -> None:
    """Gemma 2 caps its attention logits, which only the eager form can."""
    text = {**TEXT, "model_type": "gemma2", "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5}
    rest = {"image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32, "vocab_size": TEXT["vocab_size"]}
    config = PaliGemmaConfig(text_config=text, vision_config=dict(SIGLIP), **rest)
    model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    batch = batch_of("paligemma", model)
    values = score_layers(model, [batch], ROWS).values
    for name, numbers in of_full_maps(model, batch).items():
        assert values[name] == pytest.approx(numbers, abs=1e-5)
    assert model.get_decoder().config._attn_implementation == "eager"


def test_listening_changes_neither_logits_nor_the_model() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    for inputs in (batch["inputs"], padded_left(batch)["inputs"]):
        heard: list[int] = []
        with torch.no_grad():
            plain = model(**inputs).logits
            with tapped(find_parts(model), lambda a, heard=heard: heard.append(a.layer)):
                torch.testing.assert_close(model(**inputs).logits, plain)
                assert model.config.vision_config._attn_implementation == "sdpa"
            assert heard == list(range(6))
            model(**inputs)
        assert heard == list(range(6)), "nobody listens any more"
        assert model.config.text_config._attn_implementation == "sdpa"


def test_an_error_ends_the_listening() -> None:
    model = tiny_lvlm("llava")
    with pytest.raises(RuntimeError, match="stop"), tapped(find_parts(model), lambda _: None):
        raise RuntimeError("stop")
    assert model.config.text_config._attn_implementation == "sdpa"


def test_rows_are_computed_in_single_precision_under_autocast() -> None:
    query, key = torch.randn(1, 4, 5, 8).bfloat16(), torch.randn(1, 2, 5, 8).bfloat16()
    attending = Attending(0, query, key, torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(), 0.3, None)
    plain = attention.rows_of_map(attending, 0, torch.tensor([2, 4]), key[0].float())
    with torch.autocast("cpu", torch.bfloat16):
        under = attention.rows_of_map(attending, 0, torch.tensor([2, 4]), key[0].float())
    torch.testing.assert_close(under, plain, rtol=0, atol=0)


def test_samples_without_image_do_not_count_and_switched_off_layers_have_no_number() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    with bypassed(find_parts(model).layers, [1]):
        mixed = score_layers(model, [batch, text_only(batch)], ROWS).values
        images = score_layers(model, [batch], ROWS).values
    assert mixed == images
    assert [value is None for value in mixed["image_attention_text"]] == [layer == 1 for layer in range(6)]
    with pytest.raises(ValueError, match="no image tokens"):
        score_layers(model, [text_only(batch)], ROWS)


def test_unknown_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is one of text, last; got 'all'"):
        ImageAttention("all")  # type: ignore[arg-type]
