"""A pretrained diffusion model as one object: denoiser, noising process, conditions and image codec."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsight.common.errors import require
from sparsight.common.finite import check_finite
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.conditioning import Condition, Conditioner, map_condition
from sparsight.diffusion.families.known import conditioner_for, family_of
from sparsight.diffusion.model.caption_memory import CaptionMemory
from sparsight.diffusion.model.identity import stored_weights_of
from sparsight.diffusion.model.load import denoiser_name, load_pipeline
from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.model.scaling import scaling_of, warn_of_unused

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from sparsight.common.disk.stored_state import StoredState
    from sparsight.diffusion.model.timesteps import Timesteps


DECODED_PIXELS = 2**20  # at a time: a VAE's activations for them take some GiB in float32
NOTHING = "\0no caption"  # no caption holds control characters


class DiffusionModel:
    """What training, sampling, caching, metrics and export need of a pipeline, whatever its family.

    Args:
        pipeline: A diffusers pipeline with a ``unet`` or a ``transformer``.

    Attributes:
        size: Sides in model space of what is drawn; ``None`` for those that the denoiser was made for.
        guidance: What a denoiser is told in training if guidance is an input of it.
        stored: Weights of the denoiser in the files that it was loaded from; none if there are no such, or other names.
        captions: What captions became; text encoders leave the device while none of them is new.

    Raises:
        ValueError: The pipeline has no denoiser, or is of an unknown family.
        NonFiniteError: A weight is not finite.
    """

    size: Sequence[int] | None = None
    guidance: float = 3.5
    stored: StoredState | None = None

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
        encoders = [part for name, part in pipeline.components.items() if _is_encoder(name, part)]
        self.captions = CaptionMemory(encoders)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> DiffusionModel:
        """Load by folder, shipped name or hub id; see :func:`sparsight.diffusion.model.load.load_pipeline`."""
        model = cls(load_pipeline(name, **options))
        model.stored = stored_weights_of(model.denoiser, variant=options.get("variant"))
        return model

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

    def to(self, device: torch.device, *, encoders: bool = True) -> None:
        """Move every part that Lightning does not know about: VAE, and text encoders, which may leave it again.

        Args:
            device: Where to.
            encoders: Whether text encoders move now; else they come for the first caption that is new.
        """
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.component:
                part.requires_grad_(False).eval()
                if encoders or not any(part is encoder for encoder in self.captions.encoders):
                    part.to(device)

    def embed_ahead(self, captions: Iterable[str], sides: Sequence[int], device: torch.device) -> None:
        """Embed captions, and no caption, before the denoiser is on a device that has no room for it and text encoders.

        These leave the device afterwards. Nothing happens where it is the processor.

        Args:
            captions: What will be asked for, as far as it is known and finds room.
            sides: Of samples in model space.
            device: Where it is done.
        """
        if device.type == "cpu" or not self.captions.encoders:
            return
        size = (sides[-2] * self.pixels_per_cell, sides[-1] * self.pixels_per_cell)
        for caption in dict.fromkeys((NOTHING, *captions)):
            self._embedded([caption], size, device)
            if self.captions.is_full:
                warnings.warn(
                    "not all captions find room in memory once they are embedded: text encoders will come back to the "
                    "device for those that did not; a machine with more memory, or fewer captions, spares that",
                    stacklevel=2,
                )
                break
        self.captions.send_encoders_off()

    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of a sample in model space at :attr:`size`, or at the size the denoiser was made for.

        Raises:
            ConfigurationError: The denoiser cannot work at that size.
        """
        channels, *own = family_of(self.denoiser).sample_shape(self.denoiser)
        if self.size is not None:
            check_sides("sampling.size", self.size, self.denoiser)
        return channels, *(own if self.size is None else self.size)

    @property
    def pixels_per_cell(self) -> int:
        """Side, in pixels, of one cell of model space: 8 for most VAEs, 1 without one."""
        return 1 if self.vae is None else family_of(self.denoiser).pixels_per_cell(self.vae)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to model space; a VAE's posterior gives its mean.

        To a model of video they are videos of one frame.
        """
        if self.vae is None:
            return images
        if len(self.sample_shape()) == images.ndim == 4:
            images = images[:, :, None]
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        return scaling_of(self.pipeline).to_model_space(latents).to(images.dtype)

    @torch.no_grad()
    def decode(self, sample: Tensor) -> Tensor:
        """Model space to images in [0, 1], float32 (B, C, H, W); of a video its middle frame."""
        pixels = self.decode_whole(sample)
        return pixels if pixels.ndim == 4 else pixels[:, :, pixels.shape[2] // 2]

    @torch.no_grad()
    def decode_whole(self, sample: Tensor) -> Tensor:
        """Model space to images, or videos (B, C, F, H, W), in [0, 1], float32; large ones one after the other."""
        if self.vae is not None:
            latents = scaling_of(self.pipeline).to_latents(sample.to(self.vae.dtype))
            together = max(1, DECODED_PIXELS // (math.prod(latents.shape[2:]) * self.pixels_per_cell**2))
            sample = torch.cat([self.vae.decode(part).sample for part in latents.split(together)])
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
        prepared["cond"] = self.with_guidance(self.condition(batch, size), self.guidance)
        prepared["uncond"] = self.with_guidance(self.unconditional(batch, shape[0], size), self.guidance)
        return prepared

    def levels(self, uniform_B: Tensor, sides: Sequence[int], timesteps: Timesteps) -> Tensor:
        """Noise levels (B,) that training draws for uniform numbers in [0, 1).

        Args:
            uniform_B: The numbers.
            sides: Of a sample in model space, which may shift the levels.
            timesteps: The density that is drawn from.
        """
        time_B, scheduler = timesteps.times(uniform_B), self.pipeline.scheduler
        told = self.timetable(scheduler, 1, sides) if timesteps.shifted else {}
        if "mu" in told:
            time_B = scheduler.time_shift(told["mu"], 1.0, time_B)
        return self.process.levels(time_B)

    def timetable(self, scheduler: Any, steps: int, sides: Sequence[int]) -> dict[str, Any]:
        """What the family's pipelines hand to ``set_timesteps`` for a sample of these sides in model space."""
        family = family_of(self.denoiser)
        tokens = math.prod(side // p for side, p in zip(sides, family.patch(self.denoiser), strict=True))
        return family.timetable(scheduler, steps, tokens)

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance is an input of the denoiser, in place of a second pass without a condition."""
        return family_of(self.denoiser).takes_guidance(self.denoiser)

    def with_guidance(self, cond: Condition, guidance: float) -> Condition:
        """The condition, with guidance (B,) where that is an input of the denoiser."""
        if not self.takes_guidance:
            return cond
        count = len(cond["encoder_hidden_states"])
        return cond | {"guidance": torch.full((count,), guidance, device=self.device)}

    def condition(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """What the denoiser is told about a batch of images of ``size`` pixels; embeddings in the batch are used."""
        if "cond" in batch:
            return self._ready(batch["cond"])
        conditioner = self.conditioner
        if not self.captions.encoders or conditioner.column not in batch:
            return conditioner(batch, size)
        return self._embedded(list(batch[conditioner.column]), size, self.device)

    def unconditional(self, batch: Mapping[str, Any], count: int, size: tuple[int, int]) -> Condition:
        """What the denoiser is told about ``count`` images without label or caption."""
        if "uncond" in batch:
            return self._ready(batch["uncond"])
        if not self.captions.encoders:
            return self.conditioner.unconditional(count, size)
        one = self._embedded([NOTHING], size, self.device)
        return map_condition(lambda part: part.expand(count, *part.shape[1:]), one)

    def _embedded(self, captions: Sequence[str], size: tuple[int, int], device: torch.device) -> Condition:
        conditioner = self.conditioner

        def embed(caption: str) -> Condition:
            if caption == NOTHING:
                return conditioner.unconditional(1, size)
            return conditioner({conditioner.column: [caption]}, size)

        return self.captions.conditions(captions, size, embed, device)

    def _ready(self, embeddings: Condition) -> Condition:
        return _cast(embeddings, compute_dtype(self.denoiser))


def _is_encoder(name: str, part: Any) -> bool:
    return name.startswith("text_encoder") and isinstance(part, nn.Module)


def _cast(condition: Condition, dtype: torch.dtype) -> Condition:
    return map_condition(lambda part: part.to(dtype) if part.is_floating_point() else part, condition)


def predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """One denoiser call; a learned variance (second half of the channels) is left out. (B, C, H, W) to (B, C, H, W)."""
    dtype = compute_dtype(denoiser)
    output = family_of(denoiser).call(denoiser, sample.to(dtype), timestep, _cast(cond, dtype))
    return output[:, : sample.shape[1]].float()


def check_sides(name: str, size: Sequence[int], denoiser: Any) -> None:
    """See that a denoiser can work at a size.

    Args:
        name: Of the option, for the message.
        size: Sides in model space.
        denoiser: Of a family that is served.

    Raises:
        ConfigurationError: It has other sides, or cuts them into larger patches, or takes squares alone.
    """
    family = family_of(denoiser)
    patch = family.patch(denoiser)
    fits = len(size) == len(patch) and all(side >= p and side % p == 0 for side, p in zip(size, patch, strict=True))
    told = str(patch[0]) if len(set(patch)) == 1 else " and ".join(map(str, patch))
    allowed = f"{len(patch)} sides that are multiples of the denoiser's patch size {told}"
    require(fits, name, tuple(size), allowed)
    square = not family.square_only or len(set(size)) == 1
    require(square, name, tuple(size), "square: diffusers' DiT lays its tokens out as a square")


def learns_variance(denoiser: Any) -> bool:
    """Whether the second half of the output's channels is a variance (Nichol and Dhariwal, arXiv 2102.09672).

    DiT and PixArt have one. Pipelines of diffusers do not use it, nor do losses and samplers here.
    """
    config = denoiser.config
    return config.out_channels is not None and config.out_channels == 2 * config.in_channels
