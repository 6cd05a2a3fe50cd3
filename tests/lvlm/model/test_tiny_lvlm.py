"""The tiny models that other tests stand on are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny_families import FAMILIES
from tests.tiny_lvlm import save_tiny_lvlm, tiny_inputs, tiny_lvlm, tiny_processor
from tests.tiny_tokens import EOS, IMAGE


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_in_the_image_matters(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    logits_BTV = model(**inputs).logits
    assert logits_BTV.isfinite().all()
    other_BTV = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}).logits
    changed_BT = (logits_BTV - other_BTV).abs().amax(-1) > 1e-3
    before_BT = (inputs["input_ids"] == IMAGE).cumsum(1) == 0
    if family != "paligemma":  # whose prompt sees itself both ways
        assert not changed_BT[before_BT].any()
    assert changed_BT[~before_BT & (inputs["attention_mask"] == 1)].all()


@pytest.mark.parametrize("family", ["llava", "llava_qwen2", "fast_vlm"])
@torch.no_grad()
def test_folder_loads_as_a_published_model_does(family: str, tmp_path: Path) -> None:
    save_tiny_lvlm(tmp_path, family, num_hidden_layers=4)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    text = "Is it a shirt?\n\u00dc\u6f22"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (20, 30), "red"), text=prompt, return_tensors="pt")
    assert text in processor.decode(inputs["input_ids"][0])
    torch.testing.assert_close(model(**inputs).logits, tiny_lvlm(family, num_hidden_layers=4)(**inputs).logits)
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_an_answer_ends_with_the_end_token() -> None:
    processor = tiny_processor()
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A bag."}]
    assert processor.tokenizer(processor.apply_chat_template(turns))["input_ids"][-1] == EOS
