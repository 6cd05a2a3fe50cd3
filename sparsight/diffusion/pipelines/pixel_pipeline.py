"""Pipelines for denoisers that work on pixels: a DiT on classes, a U-Net or a joint transformer on captions.

Diffusers has such pipelines for latents only. This file imports torch and diffusers alone and travels inside exported
folders, where plain diffusers loads it with ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


@runtime_checkable
class ScalesNoise(Protocol):
    """A scheduler whose samples begin with another deviation than 1."""

    init_noise_sigma: Any


@runtime_checkable
class ScalesInputs(Protocol):
    """A scheduler whose denoisers take other inputs than its samples."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """What a denoiser takes at a step."""
        ...


class PixelPipeline(DiffusionPipeline):
    """What the pipelines below share: sampling with classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

    @torch.no_grad()
    def _draw(
        self,
        denoiser: Any,
        conditions: Mapping[str, torch.Tensor],
        *,
        guidance_scale: float,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
        return_dict: bool,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw an image for every row of ``conditions``; with guidance, their second half says what to keep away from.

        Args:
            denoiser: Predicts from a sample (B, C, H, W), ``timestep`` (B,) and ``conditions``.
            conditions: Keyword arguments of the denoiser, B rows each, or 2 B with guidance.
            guidance_scale: 1 is no guidance.
            num_inference_steps: Sampler steps.
            generator: Source of the starting noise.
            latents: Starting noise (B, C, H, W) to use instead.
            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].
            return_dict: Return an ImagePipelineOutput rather than a tuple.
        """
        device, config = self._execution_device, denoiser.config
        rows = len(next(iter(conditions.values())))
        guided = guidance_scale != 1.0
        size = config.sample_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        shape = (rows // 2 if guided else rows, config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator, device, denoiser.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        noise = self.scheduler.init_noise_sigma if isinstance(self.scheduler, ScalesNoise) else 1.0
        sample = latents.to(device, denoiser.dtype) * noise
        accepts = inspect.signature(self.scheduler.step).parameters  # some samplers draw noise of their own
        noise_source = {"generator": generator} if "generator" in accepts else {}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            inputs = torch.cat([sample, sample]) if guided else sample
            if isinstance(self.scheduler, ScalesInputs):
                inputs = self.scheduler.scale_model_input(inputs, timestep)
            prediction = denoiser(inputs, timestep=timestep.expand(rows), **conditions).sample
            prediction = prediction[:, : sample.shape[1]]  # a learned variance, if any, comes second
            if guided:
                with_condition, without = prediction.chunk(2)
                prediction = without + guidance_scale * (with_condition - without)
            sample = self.scheduler.step(prediction, timestep, sample, **noise_source).prev_sample
        images = VaeImageProcessor(do_normalize=True).postprocess(sample.float(), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class PixelDiTPipeline(PixelPipeline):
    """Draws images of given classes.

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
            return_dict: Return an ImagePipelineOutput rather than a tuple.

        Raises:
            ValueError: A class is unknown.
        """
        labels = torch.tensor([self._class_id(label) for label in class_labels], device=self._execution_device)
        if guidance_scale != 1.0:
            labels = torch.cat([labels, torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)])
        return self._draw(
            self.transformer,
            {"class_labels": labels},
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
        )

    def _class_id(self, label: int | str) -> int:
        names = self.config.id2label or {}
        ids = {name: int(key) for key, name in names.items()}
        if isinstance(label, str) and label in ids:
            return ids[label]
        if not isinstance(label, str) and 0 <= int(label) < self.transformer.config.num_embeds_ada_norm:
            return int(label)
        known = ", ".join(ids) or f"0 to {self.transformer.config.num_embeds_ada_norm - 1}"
        raise ValueError(f"unknown class {label!r}; known are {known}")


class PixelCaptionPipeline(PixelPipeline):
    """What the pipelines below share: drawing images for given captions."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        guidance_scale: float = 3.0,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one image for every caption.

        Args:
            prompt: Captions.
            guidance_scale: 1 follows the caption alone; larger values push away from the prediction for none.
            num_inference_steps: Sampler steps.
            generator: Source of the starting noise.
            latents: Starting noise (B, C, H, W) to use instead.
            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), values in [0, 1].
            return_dict: Return an ImagePipelineOutput rather than a tuple.
        """
        captions = [prompt] if isinstance(prompt, str) else list(prompt)
        if guidance_scale != 1.0:
            captions = captions + [""] * len(captions)
        return self._draw(
            self.denoiser,
            self.conditions(captions),
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
        )

    @property
    def denoiser(self) -> Any:
        """The part that is asked at every sampler step."""
        raise NotImplementedError

    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Keyword arguments of the denoiser, a row for every caption; "" means no caption."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_prompt(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (B, L, C) and their mask (B, L), 1 for tokens and 0 for padding; "" means no caption."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        embeds = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return embeds.to(self.denoiser.dtype), tokens.attention_mask


class PixelUNetPipeline(PixelCaptionPipeline):
    """Draws images for given captions with a U-Net.

    Args:
        tokenizer: Of the text encoder; its ``model_max_length`` is the number of tokens of every caption.
        text_encoder: A transformers model with ``last_hidden_state``, as wide as the U-Net's ``cross_attention_dim``.
        unet: A UNet2DConditionModel, or a student with its signature, over pixels in [-1, 1].
        scheduler: Any diffusers scheduler with ``scale_model_input`` or without.
    """

    model_cpu_offload_seq = "text_encoder->unet"

    def __init__(self, tokenizer: Any, text_encoder: Any, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler)

    @property
    def denoiser(self) -> Any:
        """The U-Net."""
        return self.unet

    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token embeddings and their mask."""
        embeds, mask = self.encode_prompt(captions)
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


class PixelSD3Pipeline(PixelCaptionPipeline):
    """Draws images for given captions with a joint transformer, in which text and image attend to each other.

    Args:
        tokenizer: Of the text encoder; its ``model_max_length`` is the number of tokens of every caption.
        text_encoder: A transformers model with ``last_hidden_state``, as wide as the transformer's
            ``joint_attention_dim`` and ``pooled_projection_dim``.
        transformer: An SD3Transformer2DModel over pixels in [-1, 1].
        scheduler: A flow-matching scheduler.
    """

    model_cpu_offload_seq = "text_encoder->transformer"

    def __init__(self, tokenizer: Any, text_encoder: Any, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    def conditions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token embeddings (B, L, C) and their mean (B, C).

        The transformer takes no mask of text, as in Stable Diffusion 3, so padding holds zeros whatever the encoder
        says there.
        """
        embeds, mask = self.encode_prompt(captions)
        embeds = embeds * mask[..., None].to(embeds.dtype)
        return {"encoder_hidden_states": embeds, "pooled_projections": embeds.sum(1) / mask.sum(1, keepdim=True)}


PIXEL_PIPELINES = {kind.__name__: kind for kind in (PixelDiTPipeline, PixelUNetPipeline, PixelSD3Pipeline)}
