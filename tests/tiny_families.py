"""Families of image-text models at a tiny size, as configurations: text model, vision tower, and what joins them."""

from __future__ import annotations

from typing import Any

from tests.tiny_tokens import BOS, CHAT_END, EOS, IMAGE, LONGEST, PAD, VIDEO, VISION_END, VISION_START, VOCABULARY

SIDE, PATCH = 16, 4  # of images, in pixels: 16 patches

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LONGEST,
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
