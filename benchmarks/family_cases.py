"""Families of denoisers at a tiny size, as :mod:`benchmarks.families` tries them: random weights, real classes.

Shape legend: B samples, C channels, H and W height and width in model space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import DeltaConvBlock, LinearAttention
from sparsight.diffusion.model.sampling import deterministic_sampler
from tests import tiny
from tests.tiny_flux import flux, save_flux_pipeline
from tests.tiny_sd3 import save_sd3_pipeline, sd35
from tests.tiny_wan import save_wan_pipeline, wan

CAPTIONS = ["a cat", "a dog"]
STEPS, GUIDANCE = 3, 2.5
CONV = partial(DeltaConvBlock, kernel_size=3)


@dataclass(frozen=True)
class Case:
    """A family at a tiny size.

    Args:
        name: As the table calls it.
        made: Makes a denoiser, always with the same weights.
        save: Writes diffusers' own pipeline over it to a folder.
        sizes: In model space; the first two are run, all are compiled.
        drawn: What that pipeline draws from starting noise, in model space or decoded.
        feature: A mixer that replaces an attention as a whole, or at joint sites the image's part of it.
        decoded: Whether ``drawn`` gives images.
        batch: Conditions of two samples.
    """

    name: str
    made: Callable[[], Any]
    save: Callable[[Path], Path]
    sizes: Sequence[tuple[int, ...]]
    drawn: Callable[[Any, Tensor], Tensor]
    feature: Any = CONV
    decoded: bool = False
    batch: Any = None

    @property
    def conditions(self) -> dict[str, Any]:
        """Labels or captions of two samples."""
        return self.batch or {"caption": CAPTIONS}


def _sampler(pipeline: Any) -> None:
    """Draw by the sampler that this project draws by, where the pipeline has another."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = deterministic_sampler(pipeline.scheduler)


def _images(pipeline: Any, noise_BCHW: Tensor, *, scale: int, **options: Any) -> Any:
    _sampler(pipeline)
    height, width = (scale * side for side in noise_BCHW.shape[-2:])
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": noise_BCHW, "output_type": "latent"}
    return pipeline(CAPTIONS, height=height, width=width, **given | options).images


def _flux(pipeline: Any, noise_BCHW: Tensor) -> Tensor:
    height, width = (2 * side for side in noise_BCHW.shape[-2:])
    packed = pipeline._pack_latents(noise_BCHW, *noise_BCHW.shape)
    drawn = _images(pipeline, noise_BCHW, scale=2, latents=packed)
    unpacked: Tensor = pipeline._unpack_latents(drawn, height, width, pipeline.vae_scale_factor)
    return unpacked


def _wan(pipeline: Any, noise_BCFHW: Tensor) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = noise_BCFHW.shape[2:]
    sides = {"num_frames": 2 * frames - 1, "height": 8 * height, "width": 8 * width}
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    drawn: Tensor = pipeline(CAPTIONS, latents=noise_BCFHW, **sides, **options).frames
    return drawn


def _dit(pipeline: Any, noise_BCHW: Tensor) -> Tensor:
    """Decoded; this pipeline takes no starting noise, so what it draws it from is put in its place."""
    _sampler(pipeline)
    module = pipeline.__module__
    with _in_place_of(f"{module}.randn_tensor", lambda **options: noise_BCHW):
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
        drawn: Tensor = pipeline(class_labels=[1, 7], **options).images
    return drawn


def _in_place_of(name: str, stand_in: Any) -> Any:
    from unittest.mock import patch

    return patch(name, stand_in)


def _dit_made() -> Any:
    return tiny.dit(num_embeds_ada_norm=1000, in_channels=4, out_channels=8).eval()


def _save_dit(folder: Path) -> Path:
    from diffusers import DDIMScheduler, DiTPipeline

    DiTPipeline(_dit_made(), tiny.vae(), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


CASES = (
    Case("U-Net", lambda: tiny.unet().eval(), tiny.save_sd_pipeline, [(16, 16), (16, 24)], partial(_images, scale=2)),
    Case(
        "DiT",
        _dit_made,
        _save_dit,
        [(8, 8), (16, 16)],
        _dit,
        decoded=True,
        batch={"label": torch.tensor([1, 7])},
    ),
    Case(
        "PixArt",
        lambda: tiny.pixart().eval(),
        tiny.save_pixart_pipeline,
        [(8, 8), (8, 12)],
        partial(_images, scale=2, use_resolution_binning=False, clean_caption=False),
    ),
    Case(
        "SD3.5",
        lambda: sd35(in_channels=4, out_channels=4, patch_size=2, pos_embed_max_size=16),
        save_sd3_pipeline,
        [(8, 12), (8, 8)],
        partial(_images, scale=2),
    ),
    Case("FLUX.1", flux, save_flux_pipeline, [(8, 12), (8, 8)], _flux),
    Case("Wan", wan, save_wan_pipeline, [(3, 8, 12), (2, 8, 8)], _wan, feature=LinearAttention),
)
