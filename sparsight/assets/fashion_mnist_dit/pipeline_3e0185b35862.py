"""PixelDiTPipeline, with all that it needs besides torch and diffusers.

Put together by Sparsight from the files below; its own ones are under the Apache License, version 2.0.

- sparsight/diffusion/pixel_pipeline.py
- sparsight/export/remote.py
"""

from __future__ import annotations

import inspect
import json
import sys
import torch
from collections.abc import Mapping
from collections.abc import Sequence
from diffusers import DiffusionPipeline
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from pathlib import Path
from typing import Any

_EARLIER = dict(globals()) if "settle" in globals() else {}


# ---- sparsight/diffusion/pixel_pipeline.py

"""A class-conditional pipeline for a DiT that works on pixels; diffusers has one for latents only.

This file imports torch and diffusers alone and travels inside exported folders, where plain diffusers loads it with
``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
"""





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


# ---- sparsight/export/remote.py

class SavedWithCode:
    """First base of an exported class: whoever saves the object saves this file beside its configuration."""

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the configuration, and this file."""
        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]
        code = Path(__file__)
        Path(save_directory, code.name).write_bytes(code.read_bytes())

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Read a configuration; the address of this file is no option, and none to warn about."""
        options = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(options, **kwargs)  # type: ignore[misc]


class ExportedPipeline(SavedWithCode):
    """Mixed into a pipeline class that diffusers does not have."""

    def to_json_string(self) -> str:
        """The pipeline's index; it names this file, and where ``AutoModel`` finds the code of a student in it."""
        index = json.loads(super().to_json_string())  # type: ignore[misc]
        index["_class_name"] = [Path(__file__).stem, type(self).__name__]
        for part in getattr(self, "components", {}).values():
            if getattr(part, "_auto_class", None) is not None:
                index["auto_map"] = {"AutoModel": f"{type(part).__module__}.{type(part).__name__}"}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"


def settle(earlier: Mapping[str, Any], module: dict[str, Any]) -> None:
    """End of the file: diffusers runs it again at every load, which must not change what exists already.

    Args:
        earlier: The module's names before this run; without the file's own ones at the first.
        module: The module's names.
    """
    module.update(earlier)
    # exported classes go by the file's name, so that saved pipelines name a file and not a place in a cache
    sys.modules[Path(__file__).stem] = sys.modules[__name__]


class PixelDiTPipeline(ExportedPipeline, PixelDiTPipeline):
    """The pipeline above, which takes this file along when it is saved."""

    __module__ = Path(__file__).stem


settle(_EARLIER, globals())
