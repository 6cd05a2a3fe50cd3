"""Inputs of the right shapes for any supported denoiser: for probing its sites, counting FLOPs and timing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FAMILIES = ("UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")
TEXT_TOKENS = {"UNet2DConditionModel": 77, "PixArtTransformer2DModel": 300, "SD3Transformer2DModel": 154}


def family(denoiser: nn.Module) -> str:
    """The diffusers class that a denoiser is, or that a student of it derives from.

    Raises:
        ValueError: The denoiser is of none of the supported classes.
    """
    for base in type(denoiser).__mro__:
        if base.__name__ in FAMILIES:
            return base.__name__
    raise ValueError(f"{type(denoiser).__name__} is not supported: use one of {', '.join(FAMILIES)}")


def example_inputs(
    denoiser: Any,
    *,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Keyword arguments of ``denoiser.forward`` with random content.

    Args:
        denoiser: A UNet2DConditionModel, DiTTransformer2DModel, PixArtTransformer2DModel or SD3Transformer2DModel.
        batch: Samples B.
        size: Height and width in model space; the config's ``sample_size`` if not given.
        device: Where the tensors are; ``meta`` for counting.
        dtype: Of the floating-point inputs.
    """
    config, name = denoiser.config, family(denoiser)
    if size is None:
        side = config.sample_size
        size = tuple(side) if isinstance(side, (tuple, list)) else (side, side)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    timestep = torch.full((batch,), 500, device=device)
    sample = torch.randn(batch, config.in_channels, *size, **options)
    if name == "DiTTransformer2DModel":
        return {"hidden_states": sample, "timestep": timestep, "class_labels": torch.zeros_like(timestep)}
    text = TEXT_TOKENS[name]
    if name == "SD3Transformer2DModel":
        return {
            "hidden_states": sample,
            "timestep": timestep,
            "encoder_hidden_states": torch.randn(batch, text, config.joint_attention_dim, **options),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, **options),
        }
    if name == "PixArtTransformer2DModel":
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:
            added = {
                "resolution": torch.full((batch, 2), 1024.0, **options),
                "aspect_ratio": torch.ones(batch, 1, **options),
            }
        return {
            "hidden_states": sample,
            "timestep": timestep,
            "encoder_hidden_states": torch.randn(batch, text, config.caption_channels, **options),
            "encoder_attention_mask": torch.ones(batch, text, **options),
            "added_cond_kwargs": added,
        }
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    inputs: dict[str, Any] = {
        "sample": sample,
        "timestep": timestep,
        "encoder_hidden_states": torch.randn(batch, text, width, **options),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, pooled, **options),
            "time_ids": torch.full((batch, 6), 1024.0, **options),
        }
    return inputs
