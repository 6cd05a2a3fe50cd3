"""Real transformers image-text models at a tiny size, made from configs: what tests use in place of downloads.

Every family of :data:`FAMILIES` has 6 text layers of 32 channels, 2 or 3 vision layers, and reads the tokens of
:func:`tiny_tokenizer`. Layers of :data:`HYBRIDS` are not all of one kind. Those that read images
through timm (FastVLM, PerceptionLM) are made without the hub too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>", "<vision_start>", "<vision_end>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END, CHAT_START, CHAT_END = range(len(SPECIAL))
VOCABULARY = 320
SIDE, PATCH = 16, 4  # of images, in pixels: 16 patches

SENTENCES = (
    "What is in this picture? Answer with one word. The picture shows a shirt, a bag and an ankle boot.",
    "Is there a dress in the image? Yes, there is. No, there is not. Which of the following is it? (A) coat (B) sandal",
    "The first image shows a sneaker, the second image shows a pair of trousers. They are different things.",
    "Describe this image. Write a short sentence about the weather. It is warm and the sun is shining today.",
)

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": TEXT["hidden_size"],
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
CLIP = {"model_type": "clip_vision_model", **VISION}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
# FastVLM's own kind of tower: convolutions whose output is 32 times smaller than the image
FASTVIT = {
    "model_type": "timm_wrapper",
    "architecture": "fastvit_mci0",
    "hidden_size": 16,
    "model_args": {
        "layers": [1, 1, 1, 1],
        "embed_dims": [8, 8, 8, 8],
        "token_mixers": ["repmixer"] * 4,
        "inference_mode": True,
    },
}
PERCEPTION = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_lang_large_patch14_448",
    "model_args": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": [SIDE, SIDE], "patch_size": PATCH},
}

QWEN3_ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
QWEN3_VISION = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], **QWEN_VISION}

# model_type, text model, vision model, what else the config says
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llava": ("llava", {"model_type": "llama"}, CLIP, {"image_token_index": IMAGE, "image_seq_length": 16}),
    "llava_qwen2": ("llava", {"model_type": "qwen2"}, CLIP, {"image_token_index": IMAGE, "image_seq_length": 16}),
    "llava_next": (
        "llava_next",
        {"model_type": "llama"},
        CLIP,
        {"image_token_index": IMAGE, "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]},
    ),
    "llava_onevision": (
        "llava_onevision",
        {"model_type": "qwen2"},
        SIGLIP,
        {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": [[SIDE, 2 * SIDE]]},
    ),
    "fast_vlm": (
        "fast_vlm",
        {"model_type": "qwen2", "eos_token_id": CHAT_END},
        FASTVIT,
        {"image_token_index": IMAGE, "image_seq_length": 4},
    ),
    "paligemma": (
        "paligemma",
        {"model_type": "gemma"},
        SIGLIP,
        {"image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32, "vocab_size": VOCABULARY},
    ),
    "gemma3": (
        "gemma3",
        {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 3},
        SIGLIP,
        {
            "image_token_index": IMAGE,
            "boi_token_index": VISION_START,
            "eoi_token_index": VISION_END,
            "mm_tokens_per_image": 4,
        },
    ),
    "internvl": (
        "internvl",
        {"model_type": "qwen2"},
        {"model_type": "internvl_vision", **VISION},
        {"image_token_id": IMAGE, "image_seq_length": 4},
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        },
        {"model_type": "qwen2_5_vl_vision", "window_size": 16, "fullatt_block_indexes": [1], **QWEN_VISION},
        QWEN_TOKENS,
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {"model_type": "qwen3_vl_text", "rope_parameters": QWEN3_ROPE},
        {"model_type": "qwen3_vl_vision", **QWEN3_VISION},
        QWEN_TOKENS,
    ),
    "qwen3_vl_moe": (  # 4 experts in every layer
        "qwen3_vl_moe",
        {
            "model_type": "qwen3_vl_moe_text",
            "rope_parameters": QWEN3_ROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
        {"model_type": "qwen3_vl_moe_vision", **QWEN3_VISION},
        QWEN_TOKENS,
    ),
    "qwen3_5": (  # linear attention, and full attention in every third layer
        "qwen3_5",
        {
            "model_type": "qwen3_5_text",
            "rope_parameters": QWEN3_ROPE,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        {"model_type": "qwen3_5_vision", **QWEN3_VISION, "deepstack_visual_indexes": []},
        QWEN_TOKENS,
    ),
    "lfm2_vl": (  # short convolutions, and attention in every third layer
        "lfm2_vl",
        {
            "model_type": "lfm2",
            "layer_types": ["conv", "conv", "full_attention"] * 2,
            "block_auto_adjust_ff_dim": False,
            "block_multiple_of": 8,
        },
        {"model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False, **VISION},
        {"image_token_id": IMAGE, "downsample_factor": 2, "projector_hidden_size": 32},
    ),
    "smolvlm": (
        "smolvlm",
        {"model_type": "llama"},
        {"model_type": "smolvlm_vision", **VISION},
        {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD},
    ),
    "idefics3": (
        "idefics3",
        {"model_type": "llama"},
        {"model_type": "idefics3_vision", **VISION},
        {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD},
    ),
    "perception_lm": (
        "perception_lm",
        {"model_type": "llama"},
        PERCEPTION,
        {"image_token_id": IMAGE, "video_token_id": VIDEO},
    ),
}


HYBRIDS = ("qwen3_5", "lfm2_vl")
QWENS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")  # images as patches in a row


def tiny_lvlm(family: str, **options: Any) -> Any:
    """A randomly initialised model of a family, in eval mode.

    Args:
        family: One of :data:`FAMILIES`.
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


# LLaVA-1.5's words for the roles, and the chat marks of Qwen2 and SmolLM2
VICUNA_CHAT = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ '' }}{% else %}{{ message['role'] | upper + ': ' }}{% endif %}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def tiny_tokenizer(chatml: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of :data:`VOCABULARY` tokens: any text can be read, common English letter pairs are one token.

    Args:
        chatml: Ends turns with ``<|im_end|>`` as Qwen2 does, instead of starting texts with ``<s>`` as Llama does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if not chatml:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>" if chatml else "</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=TEXT["max_position_embeddings"],
    )


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
    """Model and processor as the folder of a published model; families as in :func:`tiny_processor`."""
    tiny_lvlm(family, **options).save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return folder
