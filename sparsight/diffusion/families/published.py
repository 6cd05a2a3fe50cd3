"""Denoisers of published models at their real size, with random weights: for shapes, FLOPs and times, without a hub."""

from __future__ import annotations

from typing import Any

import diffusers

# what differs from the defaults of the class; Stable Diffusion 1.5 and XL, PixArt-Sigma XL/2 at 1024 pixels
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "pixart_sigma": (
        "PixArtTransformer2DModel",
        {
            "sample_size": 128,
            "num_layers": 28,
            "caption_channels": 4096,
            "out_channels": 8,
            "interpolation_scale": 2,
            "use_additional_conditions": False,
        },
    ),
}


def published(name: str) -> Any:
    """The denoiser of a published model, one of :data:`CONFIGS`, with fresh weights on torch's default device."""
    kind, config = CONFIGS[name]
    return getattr(diffusers, kind)(**config)
