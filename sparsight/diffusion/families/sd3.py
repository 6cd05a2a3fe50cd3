"""Stable Diffusion 3: joint transformers, in which text and image attend to each other (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from sparsight.diffusion.families.captioned import fitting_text_encoder
from sparsight.diffusion.families.conditioning import Conditioner, PixelCaptions
from sparsight.diffusion.families.family import Family
from sparsight.diffusion.families.starting_weights import close, spread
from sparsight.diffusion.pipelines.schedulers import is_flow_matching

if TYPE_CHECKING:
    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

TEXT_TOKENS = 154


class SD3(Family):
    """Joint transformers; they can be trained, their attentions are not replaced yet."""

    name = "SD3Transformer2DModel"
    pipelines = ("PixelSD3Pipeline",)
    blocks = frozenset({"JointTransformerBlock"})
    stacks = frozenset()
    shard_units = frozenset({"JointTransformerBlock"})
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "StableDiffusion3": ("shift_factor",),
        "PixelSD3": ("shift_factor",),
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, int], **options: Any) -> dict[str, Any]:
        """A sample, timesteps, token embeddings and pooled ones."""
        config = denoiser.config
        return {
            "hidden_states": torch.randn(batch, config.in_channels, *size, **options),
            "timestep": torch.full((batch,), 500, device=options["device"]),
            "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, config.joint_attention_dim, **options),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, **options),
        }

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Captions, as the pipeline embeds them."""
        return PixelCaptions(pipeline)

    def self_attentions(self, block: Any) -> list[str]:
        """None: image tokens mix with text in every attention."""
        return []

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """There is no site to read behind.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.name} has no self-attention that could be replaced yet")

    def begin(
        self,
        denoiser: Any,
        scheduler: Any,
        *,
        class_names: list[str] | None,
        text_encoder: str | None,
        text_tokens: int,
    ) -> PixelPipeline:
        """adaLN-Zero in both streams."""
        from sparsight.diffusion.pipelines.pixel_pipeline import PixelSD3Pipeline

        tokenizer, encoder = fitting_text_encoder(
            denoiser,
            ("joint_attention_dim", "pooled_projection_dim"),
            class_names=class_names,
            text_encoder=text_encoder,
            text_tokens=text_tokens,
        )
        if not is_flow_matching(scheduler):
            kind = type(denoiser).__name__
            raise ValueError(f"a {kind} predicts flow: give a FlowMatchEulerDiscreteScheduler as noise_scheduler")
        spread(denoiser)
        close(denoiser.proj_out)
        for block in denoiser.transformer_blocks:
            close(block.norm1.linear, block.norm1_context.linear)
        return PixelSD3Pipeline(tokenizer, encoder, denoiser, scheduler)
