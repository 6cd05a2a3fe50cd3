"""Stable Diffusion 3 and 3.5 at a tiny size: joint transformers, and whole pipelines with three text encoders."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tests import tiny

LETTERS = ["<pad>", "</s>", "<unk>", "\u2581", *ascii_lowercase]


def sd35(**options: Any) -> Any:
    """As ``tests.tiny.sd3``, with a second attention in its first block, and norms of queries and keys awake."""
    return tiny.awake(tiny.sd3(**{"dual_attention_layers": (0,)} | options)).eval()


def letters_encoder() -> tuple[Any, Any]:
    """A tokenizer of letters and a T5 of 32 channels."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    text = T5Config(vocab_size=len(LETTERS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    vocabulary = [(letter, -float(i > 2)) for i, letter in enumerate(LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0), T5EncoderModel(text)


def save_sd3_pipeline(folder: Path, **options: Any) -> Path:
    """A folder of diffusers' own pipeline on 16x16 latents: two CLIPs of 8 tokens, and a T5 of letters."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    latent = {"in_channels": 4, "out_channels": 4, "patch_size": 2, "pos_embed_max_size": 16}
    tokenizer, encoder = letters_encoder()
    StableDiffusion3Pipeline(
        transformer=sd35(**latent | options),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(tiny.clip_config(16, projection_dim=16)),
        text_encoder_2=CLIPTextModelWithProjection(tiny.clip_config(16, projection_dim=16)),
        text_encoder_3=encoder,
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        tokenizer_3=tokenizer,
    ).save_pretrained(folder)
    return folder
