"""Stable Diffusion 3 and 3.5: joint transformers, in which text and image attend to each other (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from sparsight.diffusion.families.captioned import fitting_text_encoder
from sparsight.diffusion.families.conditioning import Captions, Condition, Conditioner, PixelCaptions
from sparsight.diffusion.families.family import Family
from sparsight.diffusion.families.starting_weights import close, spread
from sparsight.diffusion.pipelines.schedulers import is_flow_matching

if TYPE_CHECKING:
    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

TEXT_TOKENS = 154


class SD3(Family):
    """Joint transformers; blocks of 3.5-medium have a second attention, among image tokens alone."""

    name = "SD3Transformer2DModel"
    pipelines = ("StableDiffusion3Pipeline", "PixelSD3Pipeline")
    blocks = frozenset({"JointTransformerBlock"})
    stacks = frozenset({"SD3Transformer2DModel"})
    feed_forward = frozenset({"ff", "ff_context"})
    shard_units = frozenset({"JointTransformerBlock"})
    text: ClassVar[Mapping[str, Literal["before", "after"]]] = {"attn": "after"}
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "sd35_medium": {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        }
    }
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "StableDiffusion3": ("shift_factor",),
        "PixelSD3": ("shift_factor",),
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
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
        from sparsight.diffusion.pipelines.pixel_pipeline import PixelSD3Pipeline

        return PixelCaptions(pipeline) if isinstance(pipeline, PixelSD3Pipeline) else SD3Captions(pipeline)

    def self_attentions(self, block: Any) -> list[str]:
        """The joint attention, and the one of the image alone."""
        return ["attn"] if block.attn2 is None else ["attn", "attn2"]

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """The norm in front of the feed-forward layer; both attentions have been added by then."""
        return block.norm2

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


class SD3Captions(Captions):
    """Captions of Stable Diffusion 3."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings of two CLIPs and T5 one after the other, and pooled ones of the CLIPs."""
        embeds, _, pooled, _ = self.encoded(captions, prompt_2=None, prompt_3=None)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}
