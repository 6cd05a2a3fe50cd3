"""Densities of noise levels: what the paper writes down, and the shift that the pipeline draws with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.timesteps import EVEN, MOST_MODE, Timesteps
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_flux import save_flux_pipeline

UNIFORM = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:-1]


def density(timesteps: Timesteps, bins: int = 20) -> torch.Tensor:
    return torch.histogram(timesteps.times(UNIFORM), bins, range=(0.0, 1.0), density=True).hist


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-1.0, 1.5)])
def test_logit_normal(mean: float, std: float) -> None:
    """Equation 19 of arXiv 2403.03206."""
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    z = ((t / (1 - t)).log() - mean) / std
    wanted = (-z.square() / 2).exp() / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    found = density(Timesteps("logit_normal", mean=mean, std=std))
    torch.testing.assert_close(found, wanted.view(20, 100).mean(1), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.81, 1.29, MOST_MODE])
def test_mode(scale: float) -> None:
    """Equation 20: f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), here of 1 - u, so that times rise with the number."""
    times = Timesteps("mode", mode_scale=scale).times(UNIFORM)
    rest = 1 - UNIFORM
    wanted = 1 - rest - scale * ((math.pi / 2 * rest).cos() ** 2 - 1 + rest)
    torch.testing.assert_close(times, wanted, rtol=0, atol=1e-9)
    assert (times.diff() >= -1e-12).all() and float(times[0]) >= 0 and float(times[-1]) < 1
    middle = density(Timesteps("mode", mode_scale=scale))[9:11].mean()
    assert (middle > 1) == (scale > 0) or scale == 0


def test_uniform_numbers_stay_as_they_are_and_no_level_is_beyond_the_table(tmp_path: Path) -> None:
    assert torch.equal(Timesteps().times(UNIFORM), UNIFORM)
    model = DiffusionModel.from_pretrained(str(tiny.save_pixel_pipeline(tmp_path / "dit")))
    for timesteps in (EVEN, Timesteps("logit_normal", std=50.0), Timesteps("mode")):
        levels = model.levels(UNIFORM, (8, 8), timesteps)
        assert levels.min() == 0 and levels.max() == 999
    assert torch.equal(model.levels(UNIFORM, (8, 8), EVEN), model.levels(UNIFORM, (8, 8), Timesteps()))


def test_levels_are_shifted_as_the_pipeline_draws(tmp_path: Path) -> None:
    """At every size the sampler's own noise levels are those of evenly spread numbers."""
    model = DiffusionModel.from_pretrained(str(save_flux_pipeline(tmp_path / "flux")))
    scheduler = model.pipeline.scheduler
    means = []
    for size in ((8, 12), (64, 64), (128, 128)):
        scheduler.set_timesteps(**model.timetable(scheduler, 50, size))
        wanted = scheduler.timesteps.flip(0)
        even = torch.linspace(1 / 50, 1, 50, dtype=torch.float64) - 1e-9
        found = model.process.timestep(model.levels(even, size, Timesteps()))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1.01)
        plain = model.process.timestep(model.levels(even, size, EVEN))
        torch.testing.assert_close(plain, 1000 * even.float(), rtol=0, atol=1.01)
        means.append(float(found.mean()))
    assert means == sorted(means) and means[-1] > means[0] + 10


def test_numbers_out_of_range_are_refused() -> None:
    for options, told in (
        ({"std": 0.0}, "std is 0.0"),
        ({"mode_scale": 2.0}, "-1 to 1.75"),
        ({"mean": math.nan}, "nan"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            Timesteps("logit_normal", **options)
    assert Stage("end_to_end", 1, timesteps=Timesteps("mode")).timesteps == Timesteps("mode")
