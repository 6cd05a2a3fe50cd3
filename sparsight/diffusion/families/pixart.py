"""PixArt-alpha and -Sigma: transformers over patches with cross-attention to long captions (arXiv 2310.00426)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from sparsight.diffusion.families.conditioning import Captions, Condition, Conditioner
from sparsight.diffusion.families.family import BasicBlocks

TEXT_TOKENS = 300


class PixArt(BasicBlocks):
    """Transformers of PixArt."""

    name = "PixArtTransformer2DModel"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    stacks = frozenset({"PixArtTransformer2DModel"})
    shard_units = frozenset({"BasicTransformerBlock"})
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pixart_sigma": {  # XL/2 at 1024 pixels
            "sample_size": 128,
            "num_layers": 28,
            "caption_channels": 4096,
            "out_channels": 8,
            "interpolation_scale": 2,
            "use_additional_conditions": False,
        }
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """A sample, timesteps, token embeddings with their mask and, where they are wanted, sizes."""
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:
            added = {
                "resolution": torch.full((batch, 2), 1024.0, **options),
                "aspect_ratio": torch.ones(batch, 1, **options),
            }
        return {
            "hidden_states": torch.randn(batch, denoiser.config.in_channels, *size, **options),
            "timestep": torch.full((batch,), 500, device=options["device"]),
            "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, denoiser.config.caption_channels, **options),
            "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, **options),
            "added_cond_kwargs": added,
        }

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Captions, as the pipeline embeds them."""
        return PixArtCaptions(pipeline)

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """Cross-attention reads the stream itself; ``norm2`` comes later."""
        if block.norm_type != "ada_norm_single":
            return super().next_reader(block, name)
        return block.attn2 if name == "attn1" and block.attn2 is not None else block.norm2


class PixArtCaptions(Captions):
    """Captions of PixArt."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings with their mask; alpha at 1024 pixels may want sizes, Sigma never does."""
        embeds, mask, _, _ = self.encoded(captions)
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.pipeline.transformer.config.get("use_additional_conditions"):
            resolution = torch.tensor([size], dtype=embeds.dtype, device=embeds.device)
            ratio = torch.tensor([[size[0] / size[1]]], dtype=embeds.dtype, device=embeds.device)
            added = {
                "resolution": resolution.expand(len(captions), -1),
                "aspect_ratio": ratio.expand(len(captions), -1),
            }
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask, "added_cond_kwargs": added}
