"""A pretrained diffusion model as one object: denoiser, noising process, conditions and image codec."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsight.common.finite import check_finite
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.conditioning import Condition, Conditioner, map_condition
from sparsight.diffusion.families.known import conditioner_for, family_of
from sparsight.diffusion.model.load import denoiser_name, load_pipeline
from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.model.scaling import scaling_of, warn_of_unused

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class DiffusionModel:
    """What training, sampling, caching, metrics and export need of a pipeline, whatever its family.

    Args:
        pipeline: A diffusers pipeline with a ``unet`` or a ``transformer``.

    Raises:
        ValueError: The pipeline has no denoiser, or is of an unknown family.
        NonFiniteError: A weight is not finite.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.component = denoiser_name(pipeline)
        if not self.component:
            raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer")
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                check_finite(dict(part.named_parameters()), f"the weights of {name}")
        self.process = NoiseProcess(pipeline.scheduler)
        if self.process.ends_blind:
            warnings.warn(
                "the noise scheduler ends in noise alone (rescale_betas_zero_snr), where prediction_type: epsilon "
                "tells nothing and samplers that begin there (timestep_spacing: trailing) draw NaN: Sparsight begins "
                "one spacing before; train with prediction_type: v_prediction, or set rescale_betas_zero_snr to false",
                stacklevel=2,
            )
        self.vae: Any = pipeline.components.get("vae")
        if self.vae is not None:
            warn_of_unused(pipeline)
            if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
                self.vae.float()  # it leaves float16's range, and pipelines bring it to float32, too
        family_of(self.denoiser).settle(self.denoiser)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> DiffusionModel:
        """Load by folder, shipped name or hub id; see :func:`sparsight.diffusion.model.load.load_pipeline`."""
        return cls(load_pipeline(name, **options))

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self.pipeline.unet if self.component == "unet" else self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def conditioner(self) -> Conditioner:
        """Maker of conditions, on the denoiser's device."""
        return conditioner_for(self.pipeline, self.device)

    def to(self, device: torch.device) -> None:
        """Move every part that Lightning does not know about: text encoders and VAE."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.component:
                part.requires_grad_(False).eval().to(device)

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Denoiser and text encoders to ``dtype``; a VAE stays as it is, since some leave half precision's range."""
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module) and part is not self.vae:
                part.to(dtype)

    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample in model space at the size the denoiser was made for."""
        config = self.denoiser.config
        size = config.sample_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return config.in_channels, height, width

    @property
    def pixels_per_cell(self) -> int:
        """Side, in pixels, of one cell of model space: 8 for most VAEs, 1 without one."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to model space; a VAE's posterior gives its mean."""
        if self.vae is None:
            return images
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        return scaling_of(self.pipeline).to_model_space(latents).to(images.dtype)

    @torch.no_grad()
    def decode(self, sample: Tensor) -> Tensor:
        """Model space to images in [0, 1], float32 (B, C, H, W)."""
        if self.vae is not None:
            sample = self.vae.decode(scaling_of(self.pipeline).to_latents(sample.to(self.vae.dtype))).sample
        return (sample.float() / 2 + 0.5).clamp(0, 1)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch contract: ``{"sample": (B, C, H, W) in model space, "cond": ..., "index": (B,)}``.

        A datamodule gives ``image`` in [-1, 1], or ``sample``, or a trajectory's ``xt`` and ``timestep``; and
        ``label`` or ``caption``, or ready ``cond`` and ``uncond``.
        """
        prepared = {key: batch[key] for key in ("sample", "xt", "timestep", "index") if key in batch}
        if "image" in batch:
            prepared["sample"] = self.encode(batch["image"])
        shape = prepared["sample" if "sample" in prepared else "xt"].shape
        size = (shape[-2] * self.pixels_per_cell, shape[-1] * self.pixels_per_cell)
        prepared["cond"] = self.condition(batch, size)
        prepared["uncond"] = self.unconditional(batch, shape[0], size)
        return prepared

    def condition(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """What the denoiser is told about a batch of images of ``size`` pixels; embeddings in the batch are used."""
        return self._ready(batch["cond"]) if "cond" in batch else self.conditioner(batch, size)

    def unconditional(self, batch: Mapping[str, Any], count: int, size: tuple[int, int]) -> Condition:
        """What the denoiser is told about ``count`` images without label or caption."""
        return self._ready(batch["uncond"]) if "uncond" in batch else self.conditioner.unconditional(count, size)

    def _ready(self, embeddings: Condition) -> Condition:
        return _cast(embeddings, compute_dtype(self.denoiser))


def _cast(condition: Condition, dtype: torch.dtype) -> Condition:
    return map_condition(lambda part: part.to(dtype) if part.is_floating_point() else part, condition)


def predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """One denoiser call; a learned variance (second half of the channels) is left out. (B, C, H, W) to (B, C, H, W)."""
    dtype = compute_dtype(denoiser)
    output = denoiser(sample.to(dtype), timestep=timestep, return_dict=False, **_cast(cond, dtype))[0]
    return output[:, : sample.shape[1]].float()


def learns_variance(denoiser: Any) -> bool:
    """Whether the second half of the output's channels is a variance (Nichol and Dhariwal, arXiv 2102.09672).

    DiT and PixArt have one. Pipelines of diffusers do not use it, nor do losses and samplers here.
    """
    return denoiser.config.out_channels == 2 * denoiser.config.in_channels
