"""A class-conditional pipeline for a DiT that works on pixels; diffusers has one for latents only.

This file imports torch and diffusers alone and travels inside exported folders, where plain diffusers loads it with
``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class PixelDiTPipeline(DiffusionPipeline):
    """Draws images of given classes with classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

    Args:
        transformer: A DiTTransformer2DModel, or a student with its signature, over pixels in [-1, 1].
        scheduler: Any diffusers scheduler with ``scale_model_input`` or without.
        id2label: Class names by class id (as strings, as JSON keeps them).
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: Any, scheduler: Any, id2label: dict[str, str] | None = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str],
        guidance_scale: float = 2.0,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one image for every label.

        Args:
            class_labels: Class ids, or names found in ``id2label``.
            guidance_scale: 1 follows the class alone; larger values push away from the class-free prediction.
            num_inference_steps: Sampler steps.
            generator: Source of the starting noise.
            latents: Starting noise (B, C, H, W) to use instead.
            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].
            return_dict: Answer with an ImagePipelineOutput rather than a tuple.

        Raises:
            ValueError: A class is unknown.
        """
        config = self.transformer.config
        device, dtype = self._execution_device, self.transformer.dtype
        labels = torch.tensor([self._class_id(label) for label in class_labels], device=device)
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        sample = randn_tensor(shape, generator, device, dtype) if latents is None else latents.to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = sample * getattr(self.scheduler, "init_noise_sigma", 1.0)
        accepts = inspect.signature(self.scheduler.step).parameters  # some samplers draw noise of their own
        noise_source = {"generator": generator} if "generator" in accepts else {}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            prediction = self._predict(sample, timestep, labels, guidance_scale)
            sample = self.scheduler.step(prediction, timestep, sample, **noise_source).prev_sample
        images = VaeImageProcessor(do_normalize=True).postprocess(sample.float(), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        if hasattr(self.scheduler, "scale_model_input"):
            sample = self.scheduler.scale_model_input(sample, timestep)
        guided = guidance_scale != 1.0
        if guided:
            no_class = torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)
            labels, sample = torch.cat([labels, no_class]), torch.cat([sample, sample])
        output = self.transformer(sample, timestep=timestep.expand(len(sample)), class_labels=labels).sample
        output = output[:, : sample.shape[1]]  # a learned variance, if any, comes second
        if not guided:
            return output
        with_class, without = output.chunk(2)
        return without + guidance_scale * (with_class - without)

    def _class_id(self, label: int | str) -> int:
        names = self.config.id2label or {}
        ids = {name: int(key) for key, name in names.items()}
        if isinstance(label, str) and label in ids:
            return ids[label]
        if not isinstance(label, str) and 0 <= int(label) < self.transformer.config.num_embeds_ada_norm:
            return int(label)
        known = ", ".join(ids) or f"0 to {self.transformer.config.num_embeds_ada_norm - 1}"
        raise ValueError(f"unknown class {label!r}; known are {known}")
