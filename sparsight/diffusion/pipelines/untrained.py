"""Pixel-space pipelines around a fresh denoiser: where a teacher's training begins."""

from __future__ import annotations

from typing import Any

from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from sparsight.diffusion.pipelines.initialise import initialise_dit, initialise_sd3, initialise_unet
from sparsight.diffusion.pipelines.pixel_pipeline import (
    PixelDiTPipeline,
    PixelPipeline,
    PixelSD3Pipeline,
    PixelUNetPipeline,
)
from sparsight.diffusion.pipelines.text_encoders import load_text_encoder


def untrained_pipeline(
    denoiser: Any, scheduler: Any, *, class_names: list[str] | None, text_encoder: str | None, text_tokens: int
) -> PixelPipeline:
    """A pipeline whose denoiser has fresh starting weights; ``denoiser`` is changed in place.

    Args:
        denoiser: A DiTTransformer2DModel, which is conditioned on classes, or a UNet2DConditionModel or
            SD3Transformer2DModel, on captions.
        scheduler: A diffusers training scheduler.
        class_names: Names of a DiT's classes.
        text_encoder: Text encoder of the others: see :func:`load_text_encoder`.
        text_tokens: Tokens of every caption.

    Raises:
        ValueError: The denoiser is of another class, an option does not belong to it, the text encoder's width is not
            the one that it takes, or the scheduler is not of its kind.
    """
    kind = type(denoiser).__name__
    if isinstance(denoiser, DiTTransformer2DModel):
        if text_encoder is not None:
            raise ValueError(f"text_encoder is for denoisers of captions: a {kind} takes class labels")
        initialise_dit(denoiser)
        names = None if class_names is None else {str(i): name for i, name in enumerate(class_names)}
        return PixelDiTPipeline(transformer=denoiser, scheduler=scheduler, id2label=names)
    if not isinstance(denoiser, (UNet2DConditionModel, SD3Transformer2DModel)):
        raise ValueError(
            f"a {kind} cannot be trained from nothing: give a DiTTransformer2DModel, a UNet2DConditionModel or an "
            "SD3Transformer2DModel, or the pipeline that holds it as pretrained"
        )
    if text_encoder is None:
        raise ValueError(f"a {kind} needs captions: give text_encoder, or a whole pipeline as pretrained")
    if class_names is not None:
        raise ValueError(f"class_names is for a DiTTransformer2DModel: a {kind} takes captions")
    tokenizer, encoder = load_text_encoder(text_encoder, tokens=text_tokens)
    widths: tuple[str, ...] = ("cross_attention_dim",)
    if isinstance(denoiser, SD3Transformer2DModel):
        widths = ("joint_attention_dim", "pooled_projection_dim")
        if not type(scheduler).__name__.startswith("FlowMatch"):
            raise ValueError(f"a {kind} predicts flow: give a FlowMatchEulerDiscreteScheduler as noise_scheduler")
    for name in widths:
        if denoiser.config[name] != encoder.config.hidden_size:
            raise ValueError(
                f"{name} is {denoiser.config[name]}: make it {encoder.config.hidden_size}, the features that "
                f"{text_encoder!r} gives"
            )
    if isinstance(denoiser, SD3Transformer2DModel):
        initialise_sd3(denoiser)
        return PixelSD3Pipeline(tokenizer, encoder, denoiser, scheduler)
    initialise_unet(denoiser)
    return PixelUNetPipeline(tokenizer, encoder, denoiser, scheduler)
