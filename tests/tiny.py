"""Real diffusers classes at a tiny size, made locally: what tests use in place of downloads."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from datamodules import IdxRecords, ImageDataModule, TransformOptions
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline, PixelSD3Pipeline, PixelUNetPipeline
from tests.tiny_files import write_idx


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


def save_text_encoder(folder: Path, width: int = 32) -> Path:
    """A BERT that reads one token for every letter, 12 at most."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(folder)
    return folder


def save_pixel_unet_pipeline(folder: Path, **options: Any) -> Path:
    """A pixel-space pipeline over ``unet`` with the text encoder of ``save_text_encoder``."""
    from sparsight.diffusion.pipelines.text_encoders import load_text_encoder

    denoiser = awake(unet(**{"in_channels": 3, "out_channels": 3} | options))
    encoder = save_text_encoder(folder / "encoder", denoiser.config.cross_attention_dim)
    tokenizer, text_encoder = load_text_encoder(str(encoder), tokens=12)
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    PixelUNetPipeline(tokenizer, text_encoder, denoiser, scheduler).save_pretrained(folder)
    return folder


def sd3(**options: Any) -> Any:
    """A joint transformer on 16x16 pixels: 2 blocks, 16 image tokens beside the text."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "sample_size": 16,
        "patch_size": 4,
        "in_channels": 3,
        "out_channels": 3,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    }
    return SD3Transformer2DModel(**defaults | options)


def save_pixel_sd3_pipeline(folder: Path, **options: Any) -> Path:
    """A pixel-space pipeline over ``sd3`` with the text encoder of ``save_text_encoder``."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from sparsight.diffusion.pipelines.text_encoders import load_text_encoder

    denoiser = awake(sd3(**options))
    tokenizer, encoder = load_text_encoder(str(save_text_encoder(folder / "encoder")), tokens=12)
    PixelSD3Pipeline(tokenizer, encoder, denoiser, FlowMatchEulerDiscreteScheduler(shift=2.0)).save_pretrained(folder)
    return folder


def save_sd_pipeline(folder: Path, **options: Any) -> Path:
    """A Stable Diffusion folder over ``unet``; its text encoder reads 8 tokens, one for every letter."""
    # only the tests that draw from captions pay for these imports
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    denoiser = unet(**options)
    StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(denoiser.config.cross_attention_dim)),
        tokenizer=clip_tokenizer(),
        unet=denoiser,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_sdxl_pipeline(folder: Path, **options: Any) -> Path:
    """A Stable Diffusion XL folder over ``sdxl_unet``; two text encoders read as in ``save_sd_pipeline``."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    denoiser = sdxl_unet(**options)
    width = denoiser.config.cross_attention_dim // 2  # the encoders' embeddings stand side by side
    StableDiffusionXLPipeline(
        vae=vae(force_upcast=True),
        text_encoder=CLIPTextModel(clip_config(width)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(width, projection_dim=width)),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=denoiser,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def save_pixart_pipeline(folder: Path, **options: Any) -> Path:
    """A PixArt-Sigma folder over ``pixart``; its T5 reads one token for every letter."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    denoiser = pixart(**options)
    space = "\u2581"
    letters = ["<pad>", "</s>", "<unk>", space, *ascii_lowercase]
    text_config = T5Config(
        vocab_size=len(letters),
        d_model=denoiser.config.caption_channels,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    PixArtSigmaPipeline(
        tokenizer=T5Tokenizer(vocab=[(letter, -float(i > 2)) for i, letter in enumerate(letters)], extra_ids=0),
        text_encoder=T5EncoderModel(text_config),
        vae=vae(),
        transformer=denoiser,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear"),
    ).save_pretrained(folder)
    return folder


def vae(**options: Any) -> Any:
    """An image codec of half the images' side."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**defaults | options)


CLIP_LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab={token: i for i, token in enumerate(CLIP_LETTERS)}, merges=[], model_max_length=8)


def clip_config(width: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig

    start, end = len(CLIP_LETTERS) - 2, len(CLIP_LETTERS) - 1
    return CLIPTextConfig(
        vocab_size=len(CLIP_LETTERS),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        **options,
    )


def save_idx(folder: Path, count: int = 24, side: int = 8) -> tuple[Path, Path]:
    """Random grey images and labels as idx files, such as Fashion-MNIST's."""
    rng = np.random.default_rng(0)
    images, labels = folder / "images-idx3-ubyte", folder / "labels-idx1-ubyte"
    pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    return write_idx(images, pixels), write_idx(labels, (np.arange(count) % 10).astype(np.uint8))


def image_data(
    folder: Path, *, batch_size: int = 4, count: int = 24, side: int = 8, channels: Literal[1, 3] = 1
) -> ImageDataModule:
    """An ImageDataModule over ``save_idx``, used for training and validation."""
    images, labels = map(str, save_idx(folder, count, side))
    return ImageDataModule(
        train=IdxRecords(images, labels),
        val=IdxRecords(images, labels),
        image_size=side,
        transform=TransformOptions(channels=channels),
        batch_size=batch_size,
    )


def run(denoiser: nn.Module, size: tuple[int, int], batch: int = 2) -> torch.Tensor:
    """What a denoiser returns for example inputs of a size in latent pixels (height, width)."""
    torch.manual_seed(1)
    return denoiser(**example_inputs(denoiser, batch=batch, size=size), return_dict=False)[0]
