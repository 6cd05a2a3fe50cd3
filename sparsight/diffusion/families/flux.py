"""FLUX.1: blocks with two streams, then blocks with one, over packed latents (Black Forest Labs, 2024).

Model space is the VAE's, (B, C, H, W): what packs 2x2 cells into a token, and where tokens stand, is here.

Shape legend: B batch, C channels, H and W height and width in model space, N tokens of the image, T tokens of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from blocks.base import Grid
from sparsight.diffusion.families.conditioning import Captions, Condition, Conditioner
from sparsight.diffusion.families.family import AttentionFacts, Family
from sparsight.diffusion.families.grids import remember_grid
from sparsight.diffusion.pipelines.schedulers import shift_options

TEXT_TOKENS = 512
SIDE = 128  # of latents at 1024 pixels, as the pipeline has it: no configuration says it
PACK = 2
CLOCK = 1000.0


class Flux(Family):
    """FLUX.1 [dev], which takes guidance as an input, and [schnell]."""

    name = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline",)
    blocks = frozenset({"FluxTransformerBlock", "FluxSingleTransformerBlock"})
    attentions = frozenset({"FluxAttention"})
    stacks = frozenset({"FluxTransformer2DModel"})
    feed_forward = frozenset({"ff", "ff_context", "proj_mlp", "proj_out"})
    shard_units = frozenset({"FluxTransformerBlock", "FluxSingleTransformerBlock"})
    text: ClassVar[Mapping[str, Literal["before", "after"]]] = {"attn": "before"}
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {"Flux": ("shift_factor",)}
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flux_dev": {"guidance_embeds": True},
        "flux_schnell": {"guidance_embeds": False},
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """Packed samples with their ids, time, token embeddings and pooled ones, and guidance where it is taken."""
        config = denoiser.config
        sides = [side // PACK * PACK for side in size]
        sample_BCHW = torch.randn(batch, config.in_channels // PACK**2, *sides, **options)
        cond = {
            "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, config.joint_attention_dim, **options),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, **options),
        }
        if self.takes_guidance(denoiser):
            cond["guidance"] = torch.full((batch,), 3.5, **options)
        timestep = torch.full((batch,), 500, device=options["device"])
        return self._arguments(sample_BCHW, timestep, cond)

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Captions, as the pipeline embeds them."""
        return FluxCaptions(pipeline)

    def self_attentions(self, block: Any) -> list[str]:
        """The joint attention; in blocks with one stream text and image enter it as one sequence."""
        return ["attn"]

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """The norm in front of the feed-forward layer; beside it, in blocks with one stream, none."""
        reader: nn.Module = dict(block.named_children()).get("norm2", block)
        return reader

    def sample_shape(self, denoiser: Any) -> tuple[int, ...]:
        """Channels, height and width of unpacked latents at 1024 pixels."""
        return denoiser.config.in_channels // PACK**2, SIDE, SIDE

    def check_size(self, denoiser: Any) -> tuple[int, ...]:
        """An image of 64 tokens: exports are compared on a processor."""
        return 16, 16

    def patch(self, denoiser: Any) -> tuple[int, ...]:
        """Cells that are packed."""
        return PACK, PACK

    def call(self, denoiser: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """Pack, call and unpack."""
        packed_BNC = denoiser(**self._arguments(sample, timestep, cond), return_dict=False)[0]
        return _unpacked(packed_BNC, sample.shape[-2], sample.shape[-1])

    def told(self, timestep: Tensor) -> Tensor:
        """Time from 0 to 1."""
        return timestep / CLOCK

    def takes_guidance(self, denoiser: Any) -> bool:
        """[dev] does."""
        return bool(denoiser.config.guidance_embeds)

    def timetable(self, scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
        """Noise levels in equal parts, shifted by the scheduler."""
        shift = shift_options(scheduler, tokens, most_shift=1.15)
        if scheduler.config.get("use_flow_sigmas"):
            return {"num_inference_steps": steps} | shift
        return {"sigmas": np.linspace(1.0, 1 / steps, steps)} | shift

    def facts(self, attention: Any) -> AttentionFacts:
        """Of either kind of block; text comes beside the image in those with two streams."""
        return AttentionFacts(
            channels=attention.query_dim,
            heads=attention.heads,
            head_dim=attention.head_dim,
            scale=attention.head_dim**-0.5,
            text_channels=attention.added_kv_proj_dim,
        )

    def _arguments(self, sample_BCHW: Tensor, timestep: Tensor, cond: Condition) -> dict[str, Any]:
        """Keyword arguments of ``denoiser.forward``; which rows and columns the tokens have is remembered."""
        grid = Grid(*(side // PACK for side in sample_BCHW.shape[-2:]))
        img_ids_N3 = _ids(grid, like=sample_BCHW)
        remember_grid(img_ids_N3, grid)
        return {
            "hidden_states": _packed(sample_BCHW),
            "timestep": self.told(timestep.to(sample_BCHW.dtype)),
            "img_ids": img_ids_N3,
            "txt_ids": sample_BCHW.new_zeros(cond["encoder_hidden_states"].shape[1], 3),
            **cond,
        }


def _packed(sample_BCHW: Tensor) -> Tensor:
    """(B, N, 4 C): the cells of a token, channel by channel."""
    cells = sample_BCHW.unflatten(-1, (-1, PACK)).unflatten(-3, (-1, PACK))  # B C h p w q
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpacked(packed_BNC: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`_packed`, (B, C, H, W)."""
    cells = packed_BNC.unflatten(1, (height // PACK, width // PACK)).unflatten(-1, (-1, PACK, PACK))  # B h w C p q
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _ids(grid: Grid, *, like: Tensor) -> Tensor:
    """(N, 3): zero, row and column of every token."""
    rows = torch.arange(grid.height, device=like.device, dtype=like.dtype)[:, None].expand(*grid.sizes)
    columns = torch.arange(grid.width, device=like.device, dtype=like.dtype).expand(*grid.sizes)
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)


class FluxCaptions(Captions):
    """Captions of FLUX.1."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Token embeddings of T5 and pooled ones of CLIP."""
        embeds, pooled, _ = self.pipeline.encode_prompt(captions, prompt_2=None, device=self.pipeline._execution_device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}
