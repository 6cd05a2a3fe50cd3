"""Sampling from a teacher into a cache: its finished samples, or the states on the way to them.

Shape legend: N, B samples; K kept states of a sample; samples and states are (C, H, W) in model space.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from sparsight.common.disk.sample_cache import NOT_MADE, SampleCache, cut, fill_progress
from sparsight.common.finite import NonFiniteError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import sample, starting_noise
from sparsight.diffusion.train.teacher_plan import DTYPES, TeacherPlan

NOISE_OFFSET = 1 << 32  # metrics and grids draw noise 0, 1, 2 ...: it must be new to a student trained on the cache
_log = logging.getLogger(__name__)


def fill_cache(
    cache: SampleCache,
    model: DiffusionModel,
    plan: TeacherPlan,
    *,
    total: int,
    sample_batch_size: int,
    place: Callable[[], None],
) -> None:
    """Make what is missing of samples 0 to ``total - 1``; a shard that was changed on disk is reported and made again.

    Args:
        cache: Where to.
        model: The teacher.
        plan: What to sample.
        total: Number of samples.
        sample_batch_size: Samples drawn together.
        place: Brings the teacher to the device to sample on; called if something is missing.

    Raises:
        ValueError: The folder cannot be written, or the disk is too full.
        NonFiniteError: The teacher's states are not finite.
    """
    wanted = cut(total, size=plan.shard_size)
    missing = cache.unusable(wanted)
    if not missing:
        rank_zero_info(f"teacher samples: all {total} are in {cache.folder}")
        return
    cache.begin()
    for shard, reason in missing.items():
        if reason != NOT_MADE:
            _log.warning("%s is made again: %s", cache.folder / shard.name, reason)
    if len(missing) == len(wanted):
        for folder, lines in cache.others().items():
            rank_zero_info(f"teacher samples: {folder} is not used, it was made with other settings:\n{lines}")
    samples = sum(shard.count for shard in missing)
    place()
    _check_space(cache, plan, model, samples)
    started = time.monotonic()
    with fill_progress("states") as progress:  # the unit is one sample's step: the bar moves within a batch too
        task = progress.add_task(f"{plan.mode} of the teacher", total=samples * plan.steps)
        advance = partial(progress.advance, task)
        cache.fill(
            missing,
            lambda shard: draw(model, plan, shard.ids, sample_batch_size=sample_batch_size, on_step=advance),
        )
    rank_zero_info(f"teacher samples: made {samples} in {time.monotonic() - started:.0f} s")


def _check_space(cache: SampleCache, plan: TeacherPlan, model: DiffusionModel, samples: int) -> None:
    needed = samples * plan.kept * math.prod(plan.shape(model)) * DTYPES[plan.dtype].itemsize
    rank_zero_info(
        f"teacher samples: {samples} x {plan.steps} steps on {model.device}, {needed / 1e6:.1f} MB into {cache.folder}"
    )
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise ValueError(
            f"the samples need {needed / 1e9:.1f} GB, {cache.folder} has {free / 1e9:.1f} GB left: lower count or "
            "states_per_trajectory, set cache.dtype to float16, or choose another cache.folder"
        )


def draw(
    model: DiffusionModel,
    plan: TeacherPlan,
    ids_N: Tensor,
    *,
    sample_batch_size: int,
    on_step: Callable[[int], None] = lambda states: None,
) -> dict[str, Tensor]:
    """Sample from a teacher.

    Args:
        model: The teacher.
        plan: What to sample.
        ids_N: Sample ids.
        sample_batch_size: Samples drawn together; another size changes rounding only.
        on_step: Called after every sampler step with the number of states that were reached.

    Returns:
        ``sample`` (N, C, H, W), or ``xt`` (N, K, C, H, W) with ``timestep`` and ``step`` (N, K); and ``label`` (N,) of
        a class-conditional teacher.

    Raises:
        NonFiniteError: A state is not finite.
    """
    parts = [_draw_batch(model, plan, ids_B, on_step) for ids_B in ids_N.split(sample_batch_size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _draw_batch(
    model: DiffusionModel, plan: TeacherPlan, ids_B: Tensor, on_step: Callable[[int], None]
) -> dict[str, Tensor]:
    states, timesteps = [], []

    def keep(state: Tensor, timestep: Tensor) -> None:
        _check_finite(state, ids_B, plan)
        if plan.mode == "trajectory":
            states.append(state.to("cpu", DTYPES[plan.dtype]))
            timesteps.append(timestep.cpu())
        on_step(len(ids_B))

    condition = plan.condition(ids_B, model)
    noise = starting_noise(plan.shape(model), seed=plan.seed, index=ids_B + NOISE_OFFSET)
    final = sample(model, condition, noise, steps=plan.steps, guidance=plan.guidance, on_state=keep)
    _check_finite(final, ids_B, plan)
    labels = {"label": condition["label"]} if "label" in condition else {}
    if plan.mode == "samples":
        return {"sample": final.to("cpu", DTYPES[plan.dtype])} | labels
    step_BK = plan.chosen_steps(ids_B)
    xt = torch.stack(states, 1)[torch.arange(len(ids_B))[:, None], step_BK]
    return {"xt": xt, "timestep": torch.stack(timesteps)[step_BK], "step": step_BK} | labels


def _check_finite(state: Tensor, ids_B: Tensor, plan: TeacherPlan) -> None:
    fits = state.abs() <= torch.finfo(DTYPES[plan.dtype]).max  # false for NaN too
    broken_B = ~fits.flatten(1).all(1).cpu()
    if broken_B.any():
        raise NonFiniteError(
            f"the teacher's states of samples {ids_B[broken_B].tolist()[:8]} are NaN, infinite or too large for "
            f"{plan.dtype}: check its weights, load them in float32 (variant), or lower guidance_scale={plan.guidance}"
        )
