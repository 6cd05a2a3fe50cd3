"""Real transformers image-text models at a tiny size, made from configs: what tests use in place of downloads.

Every family of ``FAMILIES`` has 6 text layers of 32 channels, 2 or 3 vision layers, and reads the tokens of
``tiny_tokenizer``. Layers of ``HYBRIDS`` are not all of one kind. Those that read images
through timm (FastVLM, PerceptionLM) are made without the hub too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaProcessor,
)

from tests.tiny_families import FAMILIES, PATCH, QWENS, SIDE, TEXT
from tests.tiny_tokens import (
    BOS,
    CHATML,
    IMAGE,
    PAD,
    SPECIAL,
    VICUNA_CHAT,
    VISION_END,
    VISION_START,
    VOCABULARY,
    tiny_tokenizer,
)


def tiny_lvlm(family: str, **options: Any) -> Any:
    """A randomly initialised model of a family, in eval mode.

    Args:
        family: One of ``FAMILIES``.
        options: Override the text model's config, such as ``num_hidden_layers=4``; ``tie_word_embeddings`` counts
            for the whole model.
    """
    torch.manual_seed(0)
    model_type, text, vision, rest = FAMILIES[family]
    tied = {key: value for key, value in options.items() if key == "tie_word_embeddings"}
    config = AutoConfig.for_model(
        model_type, text_config={**TEXT, **text, **options}, vision_config=dict(vision), **{**rest, **tied}
    )
    return _awake(AutoModelForImageTextToText.from_config(config)).eval()


def _awake(model: nn.Module) -> nn.Module:
    """Weights at which every layer passes signals on: usual first ones vanish in few channels, or start at zero."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            gain = 2.0 if parameter.ndim == 4 else 1.0  # convolutions are followed by GELU and squeezing
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tiny_inputs(family: str, model: Any) -> dict[str, Any]:
    """Keyword arguments of ``model.forward``: two samples of one image and some text, the second one right-padded."""
    torch.manual_seed(1)
    images = _images(family)
    with torch.no_grad():
        features = model.model.get_image_features(**images).pooler_output
    count = sum(part.numel() for part in features) // (2 * model.config.get_text_config().hidden_size)
    rows = []
    for length in (9, 6):
        before, after = torch.randint(len(SPECIAL), VOCABULARY, (2, length))
        image = torch.tensor([VISION_START, *[IMAGE] * count, VISION_END])
        rows.append(torch.cat([torch.tensor([BOS]), before, image, after]))
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), **images}
    if family in ("gemma3", *QWENS):
        name = "token_type_ids" if family == "gemma3" else "mm_token_type_ids"
        inputs[name] = (input_ids == IMAGE).long()
    if family == "paligemma":  # 0 where tokens see each other both ways, 1 in the answer
        inputs["token_type_ids"] = ((input_ids == VISION_END).cumsum(1) > 0).long() * inputs["attention_mask"]
    return inputs


def _images(family: str) -> dict[str, Any]:
    """Pixels of two images as a family's processor gives them, and what it says about them."""
    if family in QWENS:  # two frames of each
        return {
            "pixel_values": torch.randn(2 * 16, 3 * 2 * PATCH * PATCH),
            "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        }
    if family == "lfm2_vl":  # patches in a row, as many as they are
        return {
            "pixel_values": torch.randn(2, 16, 3 * PATCH * PATCH),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        }
    if family in ("llava_next", "llava_onevision"):  # the whole image and its two halves
        return {"pixel_values": torch.randn(2, 3, 3, SIDE, SIDE), "image_sizes": torch.tensor([[SIDE, 2 * SIDE]] * 2)}
    if family in ("smolvlm", "idefics3", "perception_lm"):  # by sample or by tile
        return {"pixel_values": torch.randn(2, 1, 3, SIDE, SIDE)}
    side = 4 * SIDE if family == "fast_vlm" else SIDE
    return {"pixel_values": torch.randn(2, 3, side, side)}


def tiny_processor(family: str = "llava") -> LlavaProcessor:
    """Processor of a ``llava``, ``llava_qwen2`` or ``fast_vlm`` model; the last one chats and ends turns as Qwen2."""
    side, patch = (4 * SIDE, 2 * SIDE) if family == "fast_vlm" else (SIDE, PATCH)
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tiny_tokenizer(chatml=family == "fast_vlm"),
        patch_size=patch,
        vision_feature_select_strategy="full" if family == "fast_vlm" else "default",
        num_additional_image_tokens=0 if family == "fast_vlm" else 1,  # CLIP's class token, which LLaVA leaves out
        chat_template=CHATML if family == "fast_vlm" else VICUNA_CHAT,
    )


def save_tiny_lvlm(folder: Path, family: str = "llava", **options: Any) -> Path:
    """Model and processor as the folder of a published model; families as in ``tiny_processor``."""
    tiny_lvlm(family, **options).save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return folder
