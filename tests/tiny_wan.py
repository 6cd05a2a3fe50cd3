"""Wan at a tiny size: a transformer over video, and a whole pipeline with a causal VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import tiny
from tests.tiny_sd3 import LETTERS


def wan(**options: Any) -> Any:
    """Two blocks; norms of queries and keys are over all heads."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    return tiny.awake(WanTransformer3DModel(**defaults | options)).eval()


def save_wan_pipeline(folder: Path, *, scheduler: Any = None, parts: dict[str, Any] | None = None) -> Path:
    """A folder of diffusers' own pipeline: a UMT5 of letters, latents of an eighth of a side and half the frames."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    text = UMT5Config(vocab_size=len(LETTERS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    made = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    denoiser = wan()
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
        scale_factor_temporal=2,
    )
    WanPipeline(
        tokenizer=T5Tokenizer(vocab=[(letter, -float(i > 2)) for i, letter in enumerate(LETTERS)], extra_ids=0),
        text_encoder=UMT5EncoderModel(text),
        vae=vae.eval(),
        scheduler=made if scheduler is None else scheduler,
        transformer=denoiser,
        **parts or {},
    ).save_pretrained(folder)
    return folder
