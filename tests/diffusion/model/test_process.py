"""Noising processes against diffusers' own arithmetic."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.train.losses import min_snr_weight, snr_over_gamma_weight

LEVELS = torch.tensor([0, 10, 500, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_variance_preserving_process_equals_the_scheduler(prediction_type: str, beta_schedule: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type, beta_schedule=beta_schedule)
    process = NoiseProcess(scheduler)
    x, noise = torch.randn(2, 4, 3, 8, 6)
    torch.testing.assert_close(process.add_noise(x, noise, LEVELS), scheduler.add_noise(x, noise, LEVELS))
    target = process.target(x, noise, LEVELS)
    expected = {"epsilon": noise, "sample": x, "v_prediction": scheduler.get_velocity(x, noise, LEVELS)}
    torch.testing.assert_close(target, expected[prediction_type])
    assert torch.equal(process.timestep(LEVELS), LEVELS)
    assert torch.equal(process.level(process.timestep(LEVELS)), LEVELS)


def test_other_schedulers_of_the_kind_give_the_same_process() -> None:
    x, noise = torch.randn(2, 4, 3, 8, 6)
    first = NoiseProcess(DDPMScheduler()).add_noise(x, noise, LEVELS)
    torch.testing.assert_close(first, NoiseProcess(DPMSolverMultistepScheduler()).add_noise(x, noise, LEVELS))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_process_equals_the_scheduler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = NoiseProcess(scheduler)
    x, noise = torch.randn(2, 4, 3, 8, 6)
    timesteps = process.timestep(LEVELS)
    torch.testing.assert_close(process.add_noise(x, noise, LEVELS), scheduler.scale_noise(x, timesteps, noise))
    torch.testing.assert_close(process.target(x, noise, LEVELS), noise - x)
    assert float(timesteps[-1]) == pytest.approx(1000.0) and timesteps[0] < timesteps[-1]
    assert torch.equal(process.level(timesteps), LEVELS)


def test_every_level_is_drawn_and_none_beyond() -> None:
    process = NoiseProcess(DDPMScheduler(num_train_timesteps=50))
    levels = process.levels(torch.linspace(0, 1 - 1e-9, 5000, dtype=torch.float64))
    assert torch.equal(levels.unique(), torch.arange(50))


def test_a_scheduler_without_noise_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="EDMEulerScheduler tells no noise levels"):
        NoiseProcess(EDMEulerScheduler())


def test_snr_and_its_weights() -> None:
    process = NoiseProcess(DDPMScheduler())
    snr = process.snr(LEVELS)
    signal = DDPMScheduler().alphas_cumprod[LEVELS]
    torch.testing.assert_close(snr, signal / (1 - signal))
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon"), torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(
        min_snr_weight(snr, 5.0, "v_prediction"), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    )
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "sample"), torch.minimum(snr, torch.tensor(5.0)))
    assert torch.equal(snr_over_gamma_weight(torch.tensor([10.0, 0.1]), 5.0), torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_every_parametrisation_alike(prediction_type: str) -> None:
    """The weighted error must be min(SNR, gamma) times the error of x_0, whatever the network predicts."""
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    process = NoiseProcess(scheduler)
    level = torch.tensor([300])
    x, noise, wrong = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    xt = process.add_noise(x, noise, level)
    alpha, sigma = scheduler.alphas_cumprod[300].double().sqrt(), (1 - scheduler.alphas_cumprod[300].double()).sqrt()
    wrong_noise = (xt - alpha * wrong) / sigma
    predicted = process.target(wrong, wrong_noise, level)
    error = (predicted - process.target(x, noise, level)).square().mean()
    weight = min_snr_weight(process.snr(level), 5.0, prediction_type)
    expected = torch.clamp_max(process.snr(level), 5.0) * (wrong - x).square().mean()
    torch.testing.assert_close(weight.double() * error, expected.double(), rtol=1e-3, atol=0)
