"""Real diffusers classes at a tiny size, made locally: what tests use in place of downloads."""

from __future__ import annotations

import struct
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from datamodules import IdxRecords, ImageDataModule
from sparsight.diffusion.pixel_pipeline import PixelDiTPipeline


def dit(**options: Any) -> DiTTransformer2DModel:
    """Class-conditional DiT of two blocks, 4x4 tokens."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 1,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "norm_num_groups": 1,
    }
    return awake(DiTTransformer2DModel(**defaults | options))


def unet(**options: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layout with two levels of attention."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
    }
    return UNet2DConditionModel(**defaults | options)


def sdxl_unet(**options: Any) -> UNet2DConditionModel:
    """Stable Diffusion XL's layout: several blocks a transformer, linear projections, size conditions."""
    return unet(
        **{
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 32 + 6 * 8,
            "cross_attention_dim": 64,
        }
        | options
    )


def pixart(**options: Any) -> PixArtTransformer2DModel:
    """PixArt of two blocks with a learned variance."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": 32,
        "cross_attention_dim": 16,
        "norm_num_groups": 1,
    }
    return PixArtTransformer2DModel(**defaults | options)


FAMILIES = {"dit": dit, "unet": unet, "sdxl": sdxl_unet, "pixart": pixart}


def awake(denoiser: nn.Module) -> Any:
    """Random values everywhere, so that no gate is closed and every site matters."""
    for parameter in denoiser.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    return denoiser


def save_pixel_pipeline(folder: Path, **options: Any) -> Path:
    """A pixel-space DiT pipeline folder."""
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    PixelDiTPipeline(dit(**options), scheduler).save_pretrained(folder)
    return folder


def save_sd_pipeline(folder: Path, **options: Any) -> Path:
    """A Stable Diffusion folder over :func:`unet`; its text encoder reads 8 tokens, one for every letter."""
    # only the tests that draw from captions pay for these imports
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(letters) - 2, len(letters) - 1
    denoiser = unet(**options)
    text_config = CLIPTextConfig(
        vocab_size=len(letters),
        hidden_size=denoiser.config.cross_attention_dim,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=CLIPTokenizer(vocab={token: i for i, token in enumerate(letters)}, merges=[], model_max_length=8),
        unet=denoiser,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_idx(folder: Path, count: int = 24, side: int = 8) -> tuple[Path, Path]:
    """Random grey images and labels as idx files, such as Fashion-MNIST's."""
    rng = np.random.default_rng(0)
    images, labels = folder / "images-idx3-ubyte", folder / "labels-idx1-ubyte"
    pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    images.write_bytes(struct.pack(">IIII", 0x803, count, side, side) + pixels.tobytes())
    labels.write_bytes(struct.pack(">II", 0x801, count) + (np.arange(count) % 10).astype(np.uint8).tobytes())
    return images, labels


def image_data(folder: Path, *, batch_size: int = 4, count: int = 24, side: int = 8) -> ImageDataModule:
    """An ImageDataModule over :func:`save_idx`, used for training and validation."""
    images, labels = map(str, save_idx(folder, count, side))
    return ImageDataModule(
        train=IdxRecords(images, labels),
        val=IdxRecords(images, labels),
        image_size=side,
        channels=1,
        batch_size=batch_size,
    )
