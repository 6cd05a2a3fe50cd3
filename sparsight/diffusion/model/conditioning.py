"""Conditioners: from labels or captions in a batch to the keyword arguments of a denoiser.

Every conditioner answers with the same nested dictionary for a batch and for "no condition", so that condition dropout
and guidance are one element-wise choice between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Condition = dict[str, Any]


def map_condition(function: Any, first: Any, *rest: Any) -> Any:
    """Apply ``function`` to the tensors of equally nested conditions; ``None`` stays ``None``."""
    if isinstance(first, Mapping):
        return {key: map_condition(function, first[key], *(other[key] for other in rest)) for key in first}
    return None if first is None else function(first, *rest)


def drop_condition(condition: Condition, unconditional: Condition, dropped_B: Tensor) -> Condition:
    """``unconditional`` where ``dropped_B`` (B,) is true, ``condition`` elsewhere."""

    def choose(with_condition: Tensor, without: Tensor) -> Tensor:
        mask = dropped_B.to(with_condition.device).view(-1, *[1] * (with_condition.ndim - 1))
        return torch.where(mask, without, with_condition)

    return map_condition(choose, condition, unconditional)


def concatenate_conditions(first: Condition, second: Condition) -> Condition:
    """Two conditions as one batch, ``first`` before ``second``."""
    return map_condition(lambda a, b: torch.cat([a, b]), first, second)


def flatten_condition(condition: Condition, prefix: str) -> dict[str, Tensor]:
    """A condition as plain named tensors, as files hold them; a part that is ``None`` becomes an empty tensor."""
    count = next(len(part) for part in _parts(condition).values() if part is not None)
    parts = {f"{prefix}.{name}": part for name, part in _parts(condition).items()}
    return {name: torch.empty(count, 0) if part is None else part for name, part in parts.items()}


def nest_condition(flat: Mapping[str, Tensor], prefix: str) -> Condition:
    """The condition that :func:`flatten_condition` was given; other tensors in ``flat`` are left out."""
    condition: Condition = {}
    for name, part in flat.items():
        first, *keys = name.split(".")
        if first == prefix:
            inner = condition
            for key in keys[:-1]:
                inner = inner.setdefault(key, {})
            inner[keys[-1]] = None if part.shape[1:] == (0,) else part
    return condition


def _parts(condition: Mapping[str, Any]) -> dict[str, Tensor | None]:
    parts: dict[str, Tensor | None] = {}
    for name, part in condition.items():
        inner = _parts(part) if isinstance(part, Mapping) else None
        parts |= {name: part} if inner is None else {f"{name}.{key}": value for key, value in inner.items()}
    return parts


class Conditioner(ABC):
    """Makes the ``cond`` of the batch contract for one family of denoisers."""

    column: str
    """Key of the batch that it reads."""

    @abstractmethod
    def __call__(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """Condition of a batch whose images are ``size`` (height, width) pixels."""

    @abstractmethod
    def unconditional(self, count: int, size: tuple[int, int]) -> Condition:
        """The empty condition, ``count`` times."""

    def _column(self, batch: Mapping[str, Any]) -> Any:
        if self.column not in batch:
            raise ValueError(
                f"the denoiser is conditioned on {self.column!r}, but the data has only {sorted(batch)}: choose a data "
                f"source with a {self.column}"
            )
        return batch[self.column]


class ClassLabels(Conditioner):
    """Class labels of a DiT; the label after the last one means "no class" (Peebles and Xie, arXiv 2212.09748)."""

    column = "label"

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.device = device

    def __call__(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """``class_labels`` (B,), int64.

        Raises:
            ValueError: There are no labels, or one is beyond the denoiser's classes.
        """
        labels = self._column(batch)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise ValueError(
                f"labels {int(labels.min())} to {int(labels.max())} do not fit a denoiser of {self.num_classes} classes"
            )
        return {"class_labels": labels.to(self.device)}

    def unconditional(self, count: int, size: tuple[int, int]) -> Condition:
        """The label that means "no class"."""
        return {"class_labels": torch.full((count,), self.num_classes, device=self.device)}


class Captions(Conditioner):
    """Captions, embedded by the text encoders of a diffusers text-to-image pipeline.

    Args:
        pipeline: One of :data:`CAPTIONED`; its own ``encode_prompt`` does the work.
    """

    column = "caption"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """Token embeddings, with masks, pooled embeddings and sizes where the family has them."""
        return self._embed(list(self._column(batch)), size)

    def unconditional(self, count: int, size: tuple[int, int]) -> Condition:
        """The empty caption; zeros in place of its embeddings where the pipeline draws with those, as SDXL's does."""
        one = self._embed([""], size)
        if zeros_for_no_caption(self.pipeline):
            added = one["added_cond_kwargs"]
            one["encoder_hidden_states"] = torch.zeros_like(one["encoder_hidden_states"])
            one["added_cond_kwargs"] = added | {"text_embeds": torch.zeros_like(added["text_embeds"])}
        return map_condition(lambda x: x.expand(count, *x.shape[1:]), one)

    @torch.no_grad()
    def _embed(self, captions: Sequence[str], size: tuple[int, int]) -> Condition:
        family = type(self.pipeline).__name__
        if family in ("PixelUNetPipeline", "PixelSD3Pipeline"):
            return self.pipeline.conditions(list(captions))
        arguments = {"device": self.pipeline._execution_device, "do_classifier_free_guidance": False}
        if family.startswith("StableDiffusionXL"):
            embeds, _, pooled, _ = self.pipeline.encode_prompt(list(captions), **arguments)
            # original size, crop corner, target size: SDXL's size conditioning, here without a crop
            time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=pooled.dtype, device=pooled.device)
            added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(captions), -1)}
            return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}
        if family.startswith("PixArt"):
            embeds, mask, _, _ = self.pipeline.encode_prompt(list(captions), **arguments)
            # PixArt at 1024 pixels may want sizes; Sigma never does
            added = {"resolution": None, "aspect_ratio": None}
            if getattr(self.pipeline.transformer.config, "use_additional_conditions", None):
                resolution = torch.tensor([size], dtype=embeds.dtype, device=embeds.device)
                ratio = torch.tensor([[size[0] / size[1]]], dtype=embeds.dtype, device=embeds.device)
                added = {
                    "resolution": resolution.expand(len(captions), -1),
                    "aspect_ratio": ratio.expand(len(captions), -1),
                }
            return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask, "added_cond_kwargs": added}
        embeds, _ = self.pipeline.encode_prompt(list(captions), num_images_per_prompt=1, **arguments)
        return {"encoder_hidden_states": embeds}


def zeros_for_no_caption(pipeline: Any) -> bool:
    """Whether a pipeline that is given no negative prompt takes zeros for its embeddings: SDXL's config decides."""
    return bool(pipeline.config.get("force_zeros_for_empty_prompt"))


CAPTIONED = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "PixelSD3Pipeline",
    "PixelUNetPipeline",
)


def conditioner_for(pipeline: Any, device: torch.device) -> Conditioner:
    """The conditioner of a pipeline.

    Raises:
        ValueError: The pipeline is of a family that Sparsight cannot condition.
    """
    if type(pipeline).__name__ in CAPTIONED:
        return Captions(pipeline)
    transformer = getattr(pipeline, "transformer", None)
    if transformer is not None and any(c.__name__ == "DiTTransformer2DModel" for c in type(transformer).__mro__):
        return ClassLabels(transformer.config.num_embeds_ada_norm, device)
    raise ValueError(
        f"{type(pipeline).__name__} is not supported: give a pipeline with a DiTTransformer2DModel, or one of "
        f"{', '.join(CAPTIONED)}"
    )
