"""Wan 2.1 and 2.2: transformers over video, with cross-attention to captions (arXiv 2503.20314).

Model space is the VAE's, (B, C, F, H, W); tokens lie on three axes, the self-attentions are sites.

Shape legend: B batch, C channels, F frames, H and W height and width in model space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from sparsight.diffusion.families.conditioning import Captions, Condition, Conditioner
from sparsight.diffusion.families.family import AttentionFacts, Family

TEXT_TOKENS = 512
SIDES = (21, 60, 104)  # of latents, at 81 frames of 480x832 pixels: no configuration says it


class Wan(Family):
    """Text to video by one transformer, of any size; a video of one frame is an image."""

    name = "WanTransformer3DModel"
    pipelines = ("WanPipeline",)
    blocks = frozenset({"WanTransformerBlock"})
    attentions = frozenset({"WanAttention"})
    stacks = frozenset({"WanTransformer3DModel"})
    feed_forward = frozenset({"ffn"})
    shard_units = frozenset({"WanTransformerBlock"})
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"Wan": ("latents_mean", "latents_std")}
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wan_1_3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        "wan_14b": {},
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """A sample, timesteps and token embeddings."""
        config = denoiser.config
        return {
            "hidden_states": torch.randn(batch, config.in_channels, *size, **options),
            "timestep": torch.full((batch,), 500, device=options["device"]),
            "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, config.text_dim, **options),
        }

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Captions, as the pipeline embeds them.

        Raises:
            ValueError: The pipeline draws with two denoisers.
        """
        if pipeline.config.get("boundary_ratio") is not None:
            raise ValueError(
                "this pipeline draws with two denoisers, transformer for high noise and transformer_2 for low "
                "(boundary_ratio): one that has transformer alone is served"
            )
        return WanCaptions(pipeline)

    def self_attentions(self, block: Any) -> list[str]:
        """The attention of video tokens; the other one is to text."""
        return ["attn1"]

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """The norm in front of the attention to text, or the layer that stands for none."""
        reader: nn.Module = block.norm2
        return reader

    def sample_shape(self, denoiser: Any) -> tuple[int, ...]:
        """Channels, frames, height and width of latents of 81 frames at 480x832 pixels."""
        return denoiser.config.in_channels, *SIDES

    def check_size(self, denoiser: Any) -> tuple[int, ...]:
        """A video of 192 tokens: exports are compared on a processor."""
        return 3, 16, 16

    def pixels_per_cell(self, vae: Any) -> int:
        """As the VAE tells."""
        side: int = vae.config.scale_factor_spatial
        return side

    def facts(self, attention: Any) -> AttentionFacts:
        """Of an attention of video tokens; its hidden state is as wide as its heads."""
        return AttentionFacts(
            channels=attention.inner_dim,
            heads=attention.heads,
            head_dim=attention.inner_dim // attention.heads,
            scale=(attention.inner_dim // attention.heads) ** -0.5,
            obstacles=() if attention.kv_inner_dim == attention.inner_dim else ("fewer key than query heads",),
            text_channels=attention.added_kv_proj_dim,
        )


class WanCaptions(Captions):
    """Captions of Wan."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings, zeros behind the last."""
        embeds, _ = self.encoded(captions, max_sequence_length=TEXT_TOKENS)
        return {"encoder_hidden_states": embeds}
