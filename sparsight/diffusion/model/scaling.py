"""From a VAE's latents to the denoiser's model space and back, exactly as the pipeline of the family does it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.common.training.dtypes import sent
from sparsight.diffusion.families.known import FAMILIES

SETTINGS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Scaling:
    """x = (z - mean) * factor / deviation, of latents z and samples x in model space (B, C, ...).

    Args:
        factor: Of all channels.
        mean: Of each channel, or one for all.
        deviation: Of each channel, or one for all.
    """

    factor: float
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def to_model_space(self, latents_BCHW: Tensor) -> Tensor:
        """What the denoiser is trained on."""
        mean, deviation = self._of_channels(latents_BCHW)
        return (latents_BCHW - mean) * self.factor / deviation

    def to_latents(self, sample_BCHW: Tensor) -> Tensor:
        """What the VAE decodes."""
        mean, deviation = self._of_channels(sample_BCHW)
        return sample_BCHW * deviation / self.factor + mean

    def _of_channels(self, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (
            sent(torch.tensor(v).view(1, -1, *[1] * (like_BCHW.ndim - 2)), like_BCHW.device).to(like_BCHW.dtype)
            for v in (self.mean, self.deviation)
        )
        return mean, deviation


def scaling_of(pipeline: Any) -> Scaling:
    """How a pipeline with a VAE scales latents; mean and deviation count only together, as in diffusers."""
    settings = used_settings(pipeline)
    mean, deviation = settings.get("latents_mean"), settings.get("latents_std")
    if mean is not None and deviation is not None:
        return Scaling(settings.get("scaling_factor", 1.0), tuple(mean), tuple(deviation))
    return Scaling(settings["scaling_factor"], (settings.get("shift_factor") or 0.0,))


def used_settings(pipeline: Any) -> dict[str, Any]:
    """Settings of a pipeline's VAE that its latents depend on, without those that are not set."""
    kind = type(pipeline).__name__
    settings = [item for family in FAMILIES.values() for item in family.latent_settings.items()]
    used = next((names for start, names in settings if kind.startswith(start)), ())
    config = pipeline.vae.config
    found = {name: config.get(name) for name in ("scaling_factor", *used)}
    if "latents_mean" in used and (found["latents_mean"] is None or found["latents_std"] is None):
        found = {"scaling_factor": found["scaling_factor"]}
    return {name: value for name, value in found.items() if value is not None}


def warn_of_unused(pipeline: Any) -> None:
    """Tell what a VAE's configuration holds that pipelines of this family do not look at, so that nothing here does."""
    used, config = used_settings(pipeline), pipeline.vae.config
    unused = [name for name in SETTINGS if config.get(name) and name not in used]
    if unused:
        warnings.warn(
            f"the VAE's configuration has {' and '.join(unused)}, which {type(pipeline).__name__} does not use: nor "
            "does Sparsight, so that exports draw as they were trained; take a pipeline made for this VAE",
            stacklevel=3,
        )
