"""What was drawn, as metrics are fed with it, and what they say of every sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sparsight.common.finite import check_rows
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.images import to_uint8

Combined = Literal["mean", "root mean"]
"""How a value of all samples is made of one for each."""


@dataclass(frozen=True)
class Samples:
    """A batch of generated images with what is known of them.

    Args:
        images: In [0, 1], (B, C, H, W).
        index: Sample ids (B,), each once over all batches and processes.
        captions: What was asked for.
        teacher_images: The teacher's images from the same noise and conditions.
        latents: The images in model space (B, c, h, w).
        teacher_latents: The teacher's.

    Raises:
        NonFiniteError: Images or latents are not finite; the message gives the ids.
    """

    images: Tensor
    index: Tensor
    captions: Sequence[str] | None = None
    teacher_images: Tensor | None = None
    latents: Tensor | None = None
    teacher_latents: Tensor | None = None
    _features: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """See above."""
        named = {
            "latents": self.latents,
            "images": self.images,
            "teacher latents": self.teacher_latents,
            "teacher images": self.teacher_images,
        }
        check_rows(named, self.index, "drawn samples")

    @cached_property
    def pixels(self) -> Tensor:
        """The images as they would be saved: uint8."""
        return to_uint8(self.images)

    @cached_property
    def teacher_pixels(self) -> Tensor:
        """The teacher's, uint8.

        Raises:
            ValueError: They were not drawn.
        """
        return to_uint8(of_teacher(self.teacher_images))

    def features(self, extractor: FeatureExtractor) -> Tensor:
        """Features (B, F); metrics with equal extractors share them."""
        return self._once("student", self.pixels, extractor)

    def teacher_features(self, extractor: FeatureExtractor) -> Tensor:
        """Features of the teacher's images."""
        return self._once("teacher", self.teacher_pixels, extractor)

    def _once(self, whose: str, pixels: Tensor, extractor: FeatureExtractor) -> Tensor:
        key = (whose, extractor.identity)
        if key not in self._features:
            self._features[key] = features = extractor(pixels)
            check_rows({f"{extractor.name} features": features}, self.index, f"images of the {whose}")
        return self._features[key]


def of_teacher(drawn: Tensor | None) -> Tensor:
    """What the teacher drew.

    Raises:
        ValueError: Nothing.
    """
    if drawn is None:
        raise ValueError("fidelity needs the teacher's samples beside the student's: is there a teacher to draw them?")
    return drawn


def in_batches(images: Tensor, size: int = 100) -> list[Samples]:
    """Images (N, C, H, W) in [0, 1] as batches of samples 0 to N - 1."""
    return [Samples(images[ids], ids) for ids in torch.arange(len(images)).split(size)]


@dataclass(frozen=True)
class SampleValues:
    """A value of every sample, in the order of their ids.

    Args:
        ids_N: Ids of the samples, int64.
        values_N: Their values, float64.
        combined: How a run's value is made of them.
    """

    ids_N: Tensor
    values_N: Tensor
    combined: Combined = "mean"
