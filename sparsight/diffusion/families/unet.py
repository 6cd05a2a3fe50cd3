"""The U-Net of Stable Diffusion 1, 2 and XL: convolutions, with transformers at some resolutions, and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sparsight.diffusion.families.captioned import fitting_text_encoder
from sparsight.diffusion.families.conditioning import (
    Captions,
    Condition,
    Conditioner,
    PixelCaptions,
    zeros_for_no_caption,
)
from sparsight.diffusion.families.family import BasicBlocks
from sparsight.diffusion.families.starting_weights import close

if TYPE_CHECKING:
    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

TEXT_TOKENS = 77


class UNet(BasicBlocks):
    """U-Nets with cross-attention to text."""

    name = "UNet2DConditionModel"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixelUNetPipeline")
    stacks = frozenset({"Transformer2DModel"})
    shard_units = frozenset({"BasicTransformerBlock", "ResnetBlock2D"})
    loads_adapters = True
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"StableDiffusionXL": ("latents_mean", "latents_std")}
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "sd15": {"sample_size": 64, "cross_attention_dim": 768},
        "sdxl": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """A sample, timesteps and token embeddings; for SDXL pooled embeddings and sizes, too."""
        config = denoiser.config
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        inputs: dict[str, Any] = {
            "sample": torch.randn(batch, config.in_channels, *size, **options),
            "timestep": torch.full((batch,), 500, device=options["device"]),
            "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, width, **options),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.randn(batch, pooled, **options),
                "time_ids": torch.full((batch, 6), 1024.0, **options),
            }
        return inputs

    def coarsest(self, denoiser: Any) -> int:
        """Every level but the last halves the sides."""
        levels: int = len(denoiser.config.block_out_channels)
        return 2 ** (levels - 1)

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Captions, as the pipeline embeds them."""
        from diffusers import StableDiffusionXLPipeline

        from sparsight.diffusion.pipelines.pixel_pipeline import PixelUNetPipeline

        if isinstance(pipeline, PixelUNetPipeline):
            return PixelCaptions(pipeline)
        return (SDXLCaptions if isinstance(pipeline, StableDiffusionXLPipeline) else SDCaptions)(pipeline)

    def begin(
        self,
        denoiser: Any,
        scheduler: Any,
        *,
        class_names: list[str] | None,
        text_encoder: str | None,
        text_tokens: int,
    ) -> PixelPipeline:
        """Every residual branch and the output start as zero (Dhariwal and Nichol, arXiv 2105.05233)."""
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        from sparsight.diffusion.pipelines.pixel_pipeline import PixelUNetPipeline

        tokenizer, encoder = fitting_text_encoder(
            denoiser,
            ("cross_attention_dim",),
            class_names=class_names,
            text_encoder=text_encoder,
            text_tokens=text_tokens,
        )
        close(denoiser.conv_out)
        close(*(module.conv2 for module in denoiser.modules() if isinstance(module, ResnetBlock2D)))
        close(*(module.proj_out for module in denoiser.modules() if isinstance(module, Transformer2DModel)))
        return PixelUNetPipeline(tokenizer, encoder, denoiser, scheduler)


class SDCaptions(Captions):
    """Captions of Stable Diffusion 1 and 2."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings."""
        embeds, _ = self.encoded(captions, num_images_per_prompt=1)
        return {"encoder_hidden_states": embeds}


class SDXLCaptions(Captions):
    """Captions of Stable Diffusion XL."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings, pooled embeddings, and sizes."""
        embeds, _, pooled, _ = self.encoded(captions)
        # original size, crop corner, target size: SDXL's size conditioning, here without a crop
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=pooled.dtype, device=pooled.device)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(captions), -1)}
        return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}

    def without_caption(self, empty: Condition) -> Condition:
        """Zeros in place of the embeddings where the pipeline draws with those."""
        if not zeros_for_no_caption(self.pipeline):
            return empty
        added = empty["added_cond_kwargs"]
        zeros = torch.zeros_like(empty["encoder_hidden_states"])
        return {
            "encoder_hidden_states": zeros,
            "added_cond_kwargs": added | {"text_embeds": torch.zeros_like(added["text_embeds"])},
        }
