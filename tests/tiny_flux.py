"""FLUX.1 at a tiny size: transformers of both kinds of blocks, and whole pipelines with two text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import tiny
from tests.tiny_sd3 import letters_encoder


def flux(**options: Any) -> Any:
    """A block with two streams and two with one; guidance is an input, as of [dev]; norms of queries and keys awake."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    return tiny.awake(FluxTransformer2DModel(**defaults | options)).eval()


def schnell(**options: Any) -> Any:
    """Without guidance as an input."""
    return flux(guidance_embeds=False, **options)


def save_flux_pipeline(folder: Path, *, scheduler: dict[str, Any] | None = None, **options: Any) -> Path:
    """A folder of diffusers' own pipeline: a CLIP of 8 tokens, a T5 of letters, latents of half an image's side."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextModel

    tokenizer, encoder = letters_encoder()
    FluxPipeline(
        transformer=flux(**options),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler or {"use_dynamic_shifting": True, "shift": 3.0}),
        vae=tiny.vae(scaling_factor=0.4, shift_factor=0.1),
        text_encoder=CLIPTextModel(tiny.clip_config(16)),
        tokenizer=tiny.clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)
    return folder
