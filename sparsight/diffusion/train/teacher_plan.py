"""What is sampled from a teacher: all that, together with its weights, decides the content of a cache.

Everything about a sample follows from its id: starting noise, label or caption, and which of its states are kept. So
a shard holds the same numbers whatever was made before it.

Shape legend: N samples; K kept states of a sample; samples and states are (C, H, W) in model space.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparsight.common.disk.cache_options import Stored
from sparsight.common.disk.remembered_hash import remembered_hash
from sparsight.common.hashes import state_hash
from sparsight.diffusion.families.conditioning import ClassLabels, zeros_for_no_caption
from sparsight.diffusion.model.diffusion_model import DiffusionModel, check_sides
from sparsight.diffusion.model.identity import in_float32
from sparsight.diffusion.model.sampling import deterministic_sampler

FORMAT = 2  # goes up when the same settings would give other numbers
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
DTYPES = {"float32": torch.float32, "float16": torch.float16}
Mode = Literal["samples", "trajectory"]


@dataclass(frozen=True)
class TeacherPlan:
    """What is sampled from a teacher.

    Args:
        mode: ``samples`` keeps finished samples, ``trajectory`` the states that the denoiser is asked about.
        steps: Sampler steps.
        guidance: Guidance scale; 1 is none.
        states_per_trajectory: Kept states of a trajectory, one from each of as many equal parts; ``None`` keeps all.
        captions: Captions for text-to-image teachers, dealt out in turn.
        size: Height and width in model space, behind frames for video; ``None`` is what the denoiser was made for.
        seed: Decides the starting noise, together with the sample's id.
        dtype: Of the stored tensors.
        shard_size: Samples of a shard.

    Raises:
        ValueError: An option is out of range, or they contradict each other.
    """

    mode: Mode
    steps: int
    guidance: float
    states_per_trajectory: int | None
    captions: tuple[str, ...] | None
    size: tuple[int, ...] | None
    seed: int
    dtype: Stored
    shard_size: int

    def __post_init__(self) -> None:
        for name, value, allowed in (("mode", self.mode, get_args(Mode)), ("cache.dtype", self.dtype, tuple(DTYPES))):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
        for name, number in (("sampling.steps", self.steps), ("cache.shard_size", self.shard_size)):
            if number < 1:
                raise ValueError(f"{name} is {number}; allowed: 1 or more")
        if not math.isfinite(self.guidance):
            raise ValueError(f"sampling.guidance_scale is {self.guidance}; allowed: a finite number, 1 for none")
        if self.captions is not None and not self.captions:
            raise ValueError("captions is empty: give at least one, or null for a class-conditional teacher")
        if self.states_per_trajectory is None:
            return
        if self.mode == "samples":
            raise ValueError("states_per_trajectory is for mode: trajectory; leave it out with mode: samples")
        if not 1 <= self.states_per_trajectory <= self.steps:
            raise ValueError(
                f"states_per_trajectory is {self.states_per_trajectory}; allowed: 1 to sampling.steps={self.steps}"
            )

    @property
    def kept(self) -> int:
        """Stored tensors of a sample, K."""
        if self.mode == "samples":
            return 1
        return self.steps if self.states_per_trajectory is None else self.states_per_trajectory

    def chosen_steps(self, ids_N: Tensor) -> Tensor:
        """Sampler steps of the kept states, ascending, int64 (N, K).

        The trajectory is cut into K equal parts; where in its parts a sample's states are follows the multiples of the
        golden ratio, which spread evenly, and evenly within every class and any run of consecutive samples too.
        """
        offset_N = (ids_N.double() * GOLDEN_RATIO) % 1
        return ((torch.arange(self.kept) + offset_N[:, None]) * self.steps / self.kept).long()

    def check_coverage(self, count: int) -> None:
        """See that ``count`` trajectories have states at all noise levels.

        Raises:
            ValueError: A step has none.
        """
        if self.mode == "trajectory" and len(self.chosen_steps(torch.arange(count)).unique()) < self.steps:
            raise ValueError(
                f"{count} trajectories with {self.kept} states each leave some of the {self.steps} steps without any: "
                "raise count or states_per_trajectory, or lower steps"
            )

    def shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """(C, H, W) of a sample.

        Raises:
            ConfigurationError: The denoiser cannot work at this size.
        """
        channels, *own = model.sample_shape()
        size = self.size or own
        check_sides("size", size, model.denoiser)
        return channels, *size

    def condition(self, ids_N: Tensor, model: DiffusionModel) -> dict[str, Any]:
        """Labels (int64, (N,), all classes equally often) or captions of samples.

        Raises:
            ValueError: The teacher needs captions and there are none, or the other way round.
        """
        conditioner = model.conditioner
        if isinstance(conditioner, ClassLabels):
            if self.captions is not None:
                raise ValueError("captions are given, but the teacher is conditioned on classes: set captions to null")
            return {"label": ids_N % conditioner.num_classes}
        if self.captions is None:
            raise ValueError("the teacher is conditioned on text: set captions to a list or to a .txt file")
        return {"caption": [self.captions[i % len(self.captions)] for i in ids_N.tolist()]}

    def settings(self, model: DiffusionModel, *, like: str | None = None) -> dict[str, Any]:
        """Everything that decides the content of a cache; weights by a hash like another, see ``state_hash``."""
        sampler = deterministic_sampler(model.pipeline.scheduler)
        captions = None if self.captions is None else hashlib.sha256(json.dumps(self.captions).encode()).hexdigest()
        return {
            "format": FORMAT,
            "teacher": _identity(model, like=like),
            "sampler": {"class": type(sampler).__name__, "config": _public(sampler.config)},
            "mode": self.mode,
            "steps": self.steps,
            "guidance_scale": float(self.guidance),
            "states_per_trajectory": self.kept,
            "captions": captions,
            "shape": list(self.shape(model)),
            "seed": self.seed,
            "dtype": self.dtype,
            "shard_size": self.shard_size,
        }


def _identity(model: DiffusionModel, *, like: str | None) -> dict[str, Any]:
    encoders = {
        name: state_hash(part.state_dict(), like=like)
        for name, part in model.pipeline.components.items()
        if name.startswith("text_encoder") and isinstance(part, nn.Module)
    }
    return {
        "class": type(model.denoiser).__name__,
        "config": _public(model.denoiser.config),
        "weights": _weights(model, like=like),
        "text_encoders": encoders,
        "zeros_for_no_caption": zeros_for_no_caption(model.pipeline),
    }


def _weights(model: DiffusionModel, *, like: str | None) -> str:
    """Hash of the denoiser's weights as they were loaded."""
    if like is None and model.stored is not None and in_float32(model.denoiser):
        return remembered_hash(model.stored)
    return state_hash(model.denoiser.state_dict(), like=like)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    # names with an underscore tell where a config came from, not what it does
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, default=str))
