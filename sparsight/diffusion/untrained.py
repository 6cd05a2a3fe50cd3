"""Pixel-space pipelines around a fresh denoiser: where a teacher's training begins."""

from __future__ import annotations

from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel

from sparsight.diffusion.initialise import initialise_dit, initialise_unet
from sparsight.diffusion.pixel_pipeline import PixelDiTPipeline, PixelPipeline, PixelUNetPipeline
from sparsight.diffusion.text_encoders import load_text_encoder


def untrained_pipeline(
    denoiser: Any, scheduler: Any, *, class_names: list[str] | None, text_encoder: str | None, text_tokens: int
) -> PixelPipeline:
    """A pipeline whose denoiser has fresh starting weights; ``denoiser`` is changed in place.

    Args:
        denoiser: A DiTTransformer2DModel, which is conditioned on classes, or a UNet2DConditionModel, on captions.
        scheduler: A diffusers training scheduler.
        class_names: Names of a DiT's classes.
        text_encoder: Text encoder of a U-Net: see :func:`load_text_encoder`.
        text_tokens: Tokens of every caption.

    Raises:
        ValueError: The denoiser is of another class, an option does not belong to it, or the text encoder's width is
            not the one that it takes.
    """
    if isinstance(denoiser, DiTTransformer2DModel):
        if text_encoder is not None:
            raise ValueError("text_encoder is for a UNet2DConditionModel: a DiTTransformer2DModel takes class labels")
        initialise_dit(denoiser)
        names = None if class_names is None else {str(i): name for i, name in enumerate(class_names)}
        return PixelDiTPipeline(transformer=denoiser, scheduler=scheduler, id2label=names)
    if not isinstance(denoiser, UNet2DConditionModel):
        raise ValueError(
            f"a {type(denoiser).__name__} cannot be trained from nothing: give a DiTTransformer2DModel or a "
            "UNet2DConditionModel, or the pipeline that holds it as pretrained"
        )
    if text_encoder is None:
        raise ValueError("a UNet2DConditionModel needs captions: give text_encoder, or a whole pipeline as pretrained")
    if class_names is not None:
        raise ValueError("class_names is for a DiTTransformer2DModel: a UNet2DConditionModel takes captions")
    tokenizer, encoder = load_text_encoder(text_encoder, tokens=text_tokens)
    width, wanted = encoder.config.hidden_size, denoiser.config.cross_attention_dim
    if width != wanted:
        raise ValueError(f"cross_attention_dim is {wanted}: make it {width}, the features that {text_encoder!r} gives")
    initialise_unet(denoiser)
    return PixelUNetPipeline(tokenizer=tokenizer, text_encoder=encoder, unet=denoiser, scheduler=scheduler)
