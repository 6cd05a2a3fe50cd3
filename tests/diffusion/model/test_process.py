"""Noising processes against diffusers' own arithmetic."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.train.timestep_weights import min_snr_weight, paper_weight

LEVELS = torch.tensor([0, 10, 500, 999])


SCHEDULERS = {kind: DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")} | {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0)
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("step", [50, 300, 900])
def test_weights_fit_every_parametrisation(kind: str, step: int) -> None:
    """min(SNR, gamma) times the error of x_0, and min(gamma SNR, 1) times that of the noise, whatever is predicted."""
    process = NoiseProcess(SCHEDULERS[kind])
    assert process.prediction_type == kind
    level = torch.tensor([step])
    x, noise, wrong = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    alpha, sigma = process._alpha_T[level].double(), process._sigma_T[level].double()
    xt = alpha * x + sigma * noise
    wrong_noise = (xt - alpha * wrong) / sigma
    predicted = process.target(wrong, wrong_noise, level)
    error = (predicted - process.target(x, noise, level)).square().mean()
    snr = process.snr(level)
    of_sample = torch.clamp_max(snr, 5.0) * (wrong - x).square().mean()
    of_noise = torch.clamp_max(0.7 * snr, 1.0) * (wrong_noise - noise).square().mean()
    found = min_snr_weight(snr, 5.0, kind).double() * error, paper_weight(snr, 0.7, kind).double() * error
    torch.testing.assert_close(found[0], of_sample.double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(found[1], of_noise.double(), rtol=1e-3, atol=0)


def test_a_scheduler_that_was_drawn_with_tells_the_levels_of_training() -> None:
    for name, used in SCHEDULERS.items():
        fresh = NoiseProcess(used).timestep(LEVELS)
        used.set_timesteps(4)
        torch.testing.assert_close(NoiseProcess(used).timestep(LEVELS), fresh, msg=name)
