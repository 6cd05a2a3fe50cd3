"""What the stages of a distillation optimise, as configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from sparsight.common.errors import ConfigurationError, need_choice, need_kind, need_numbers, need_whole, require
from sparsight.common.training.lr_schedules import SCHEDULES
from sparsight.diffusion.model.timesteps import Timesteps

Objective = Literal["layerwise", "end_to_end"]
Preset = Literal["default", "paper", "released"]
Compared = Literal["output", "residual"]
TimestepWeight = Literal["none", "min_snr", "paper"]


@dataclass
class LossTerms:
    """Terms of the end-to-end loss.

    Args:
        to_teacher: Weight of the squared error to the teacher's output.
        to_target: Weight of the squared error to the noising process's target; needs clean samples in the data.
        guided: Weight of the squared error of what samples are drawn with: predictions with and without the condition,
            brought together by ``sampling.guidance_scale``, which multiplies what they do not have in common. Every
            sample then passes twice, and ``condition_dropout`` counts for nothing.
        site: Weight of the site loss, "beta" in the paper.
        site_on: Compare what the attention and the mixer give (``output``), or the residual stream after it was
            added (``residual``).
        site_normalised: Divide every site's error by the teacher's mean square, and average over sites; otherwise
            plain mean squared errors, summed.
        timestep_weight: ``none``; ``min_snr`` (Hang et al., arXiv 2303.09556): min(SNR, gamma) of the error of the
            sample; ``paper``: min(gamma * SNR, 1) of the error of the noise; both whatever the denoiser predicts.
        gamma: Of the timestep weight.

    Raises:
        ConfigurationError: A choice is unknown.
    """

    to_teacher: float = 1.0
    to_target: float = 0.0
    guided: float = 0.0
    site: float = 0.1
    site_on: Compared = "output"
    site_normalised: bool = True
    timestep_weight: TimestepWeight = "none"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        need_choice("loss.site_on", self.site_on, Compared)
        need_choice("loss.timestep_weight", self.timestep_weight, TimestepWeight)


LOSS_PRESETS = {
    "default": LossTerms(),
    # arXiv 2504.21292: both output errors, min(gamma SNR, 1), beta = 0.001 on block outputs
    "paper": LossTerms(to_target=1.0, site=1e-3, site_normalised=False, timestep_weight="paper"),
    # the code released with it: no timestep weight, residual streams
    "released": LossTerms(to_target=1.0, site=1e-3, site_normalised=False, site_on="residual"),
}


@dataclass
class Stage:
    """One stage of a distillation; it begins with a fresh optimiser.

    Args:
        objective: ``layerwise``: every mixer regresses its site's output from the teacher's own input, all at once.
            ``end_to_end``: the student's output and sites against the teacher's, each on its own stream.
        steps: Optimiser steps.
        loss: Terms of the end-to-end loss: a preset's name (default, paper, released) or the terms themselves.
        lr: Learning rate at its highest.
        lr_schedule: One of transformers' schedules, e.g. ``constant_with_warmup`` or ``cosine``.
        warmup_steps: Steps over which the learning rate rises.
        timesteps: At which noise levels is trained how often; all alike, shifted by the size as the pipeline does, if
            not given.

    Raises:
        ValueError: A number is out of range, or the schedule or the preset is unknown.
    """

    objective: Objective
    steps: int
    loss: Preset | LossTerms = "default"
    lr: float = 3e-4
    lr_schedule: str = "constant_with_warmup"
    warmup_steps: int = 100
    timesteps: Timesteps | None = None

    def __post_init__(self) -> None:
        need_choice("objective", self.objective, Objective)
        need_whole(steps=self.steps, warmup_steps=self.warmup_steps)
        need_numbers(lr=self.lr)
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(0 < self.lr < math.inf, "lr", self.lr, "above 0")
        require(self.lr_schedule in SCHEDULES, "lr_schedule", repr(self.lr_schedule), ", ".join(SCHEDULES))
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        if isinstance(self.loss, str):
            need_choice("loss", self.loss, Preset)
        need_kind("loss", self.loss, (str, LossTerms), "a preset's name or LossTerms")
        terms = self.terms
        weights = {"to_teacher": terms.to_teacher, "to_target": terms.to_target}
        weights |= {"guided": terms.guided, "site": terms.site}
        for name, weight in {**weights, "gamma": terms.gamma}.items():
            require(0 <= weight < math.inf, f"loss.{name}", weight, "0 or more")
        require(self.objective != "end_to_end" or any(weights.values()), "loss", weights, "a weight above 0 among them")

    @property
    def terms(self) -> LossTerms:
        """The loss terms, with a preset resolved."""
        return LOSS_PRESETS[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def is_guided(self) -> bool:
        """Whether samples pass with and without their condition."""
        return self.objective == "end_to_end" and self.terms.guided > 0

    @property
    def rates(self) -> str:
        """The learning rate, in words."""
        return f"{self.lr:g}"


def site_weight(weights: dict[str, float], path: str) -> float:
    """Weight of a site's loss: that of the first pattern that its path matches, else 1."""
    return next((weight for pattern, weight in weights.items() if fnmatch(path, pattern)), 1.0)


def check_weights(given: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Refuse patterns of no site, and weights with which no site learns.

    Args:
        given: Weights by pattern.
        weights: Weights by path of a site.

    Raises:
        ConfigurationError: A pattern matches none, or all weights are 0.
    """
    for pattern in given:
        if not any(fnmatch(path, pattern) for path in weights):
            raise ConfigurationError(f"site_weights.{pattern} matches no site; sites are {', '.join(weights)}")
    require(any(weights.values()), "site_weights", dict(given), "a weight above 0 for one site at least")


def check_learners(weights: Mapping[str, float], learners: Sequence[str]) -> None:
    """Refuse weights that leave a layer-wise stage the errors of sites without parameters alone.

    Args:
        weights: Weights by path of a site.
        learners: Paths of sites that have something to train; where there is none, others say so.

    Raises:
        ConfigurationError: All that learn weigh 0.
    """
    if learners and not any(weights[path] for path in learners):
        raise ConfigurationError(
            f"site_weights is 0 for all sites that have something to train ({', '.join(learners)}), so the layer-wise "
            "stage would train nothing: give one a weight above 0"
        )


def check_guided(stages: Sequence[Stage], *, scale: float, is_input: bool) -> None:
    """Refuse a guided loss where there is no guidance of two passes.

    Args:
        stages: Of the run.
        scale: Guidance scale that samples are drawn with.
        is_input: Whether the denoiser takes guidance as an input.

    Raises:
        ConfigurationError: A stage has one.
    """
    if not any(stage.is_guided for stage in stages):
        return
    if is_input:
        raise ConfigurationError(
            "loss.guided is about predictions with and without a condition, but this denoiser takes guidance as an "
            "input and is trained at sampling.guidance_scale already: set it to 0"
        )
    if scale == 1:
        raise ConfigurationError(
            "loss.guided at sampling.guidance_scale 1 is what to_teacher is, at twice the cost: give the scale that "
            "samples are drawn with, or set it to 0"
        )


def check_trajectories(stages: Sequence[Stage]) -> None:
    """Refuse stages that want of a teacher's trajectory states what these do not tell.

    Raises:
        ConfigurationError: One wants a target, or noise levels.
    """
    if any(stage.objective == "end_to_end" and stage.terms.to_target for stage in stages):
        raise ConfigurationError(
            "to_target needs clean samples, but the data holds trajectory states: set to_target to 0 (it is 1 in "
            "the losses paper and released), or use images or mode: samples"
        )
    if any(stage.timesteps for stage in stages):
        raise ConfigurationError(
            "timesteps of a stage draws noise levels for clean samples, but the data holds trajectory states, "
            "which have theirs: leave timesteps out, or use images or mode: samples"
        )
