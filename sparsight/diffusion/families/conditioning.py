"""Conditioners: from labels or captions in a batch to the keyword arguments of a denoiser; families have their own.

Every conditioner returns nested dictionaries of equal keys for a batch and for "no condition", so that condition
dropout and guidance are one element-wise choice between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsight.common.training.dtypes import sent

Condition = dict[str, Any]


def map_condition(function: Any, first: Any, *rest: Any) -> Any:
    """Apply ``function`` to the tensors of equally nested conditions; ``None`` stays ``None``."""
    if isinstance(first, Mapping):
        return {key: map_condition(function, first[key], *(other[key] for other in rest)) for key in first}
    return None if first is None else function(first, *rest)


def drop_condition(condition: Condition, unconditional: Condition, dropped_B: Tensor) -> Condition:
    """``unconditional`` where ``dropped_B`` (B,) is true, ``condition`` elsewhere."""

    def choose(with_condition: Tensor, without: Tensor) -> Tensor:
        mask = sent(dropped_B, with_condition.device).view(-1, *[1] * (with_condition.ndim - 1))
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
    """The condition that ``flatten_condition`` was given; other tensors in ``flat`` are left out."""
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
    told_by: str = "docs/data.md"
    """What says how records are given it, or how a folder's are, in words."""

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
                f"source with a {self.column} ({self.told_by})"
            )
        return batch[self.column]


class ClassLabels(Conditioner):
    """Class labels of a DiT; the label after the last one means "no class" (Peebles and Xie, arXiv 2212.09748)."""

    column = "label"
    told_by = "in a folder the first subfolder names the class, or the column label of a metadata.csv"

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
                f"labels {int(labels.min())} to {int(labels.max())} do not fit a denoiser of {self.num_classes} "
                f"classes, which are 0 to {self.num_classes - 1}"
            )
        return {"class_labels": sent(labels, self.device)}

    def unconditional(self, count: int, size: tuple[int, int]) -> Condition:
        """The label that means "no class"."""
        return {"class_labels": torch.full((count,), self.num_classes, device=self.device)}


class Captions(Conditioner):
    """Captions, embedded by the text encoders of a pipeline.

    Args:
        pipeline: A diffusers pipeline of text to image; its own ``encode_prompt`` does the work.
    """

    column = "caption"
    told_by = "in a folder a.txt beside a.png holds it, or the column text of a metadata.csv"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """Token embeddings, with masks, pooled embeddings and sizes where the family has them."""
        return self._embedded(list(self._column(batch)), size)

    def unconditional(self, count: int, size: tuple[int, int]) -> Condition:
        """The empty caption, as the pipeline draws without a negative prompt."""
        one = self.without_caption(self._embedded([""], size))
        return map_condition(lambda x: x.expand(count, *x.shape[1:]), one)

    @abstractmethod
    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """Condition of images of ``size`` (height, width) pixels, one row for every caption."""

    def without_caption(self, empty: Condition) -> Condition:
        """The condition of no caption, given that of an empty one."""
        return empty

    @torch.no_grad()
    def _embedded(self, captions: list[str], size: tuple[int, int]) -> Condition:
        return self.embed(captions, size)

    def encoded(self, captions: list[str], **options: Any) -> Any:
        """What the pipeline's ``encode_prompt`` gives for these captions alone."""
        return self.pipeline.encode_prompt(
            captions, device=self.pipeline._execution_device, do_classifier_free_guidance=False, **options
        )


class PixelCaptions(Captions):
    """Captions of Sparsight's own pipelines in pixel space, which make conditions themselves."""

    def embed(self, captions: list[str], size: tuple[int, int]) -> Condition:
        """What the pipeline draws with."""
        return self.pipeline.conditions(captions)


def zeros_for_no_caption(pipeline: Any) -> bool:
    """Whether a pipeline that is given no negative prompt takes zeros for its embeddings: SDXL's config decides."""
    return bool(pipeline.config.get("force_zeros_for_empty_prompt"))
