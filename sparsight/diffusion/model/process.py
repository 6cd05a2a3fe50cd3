"""The forward noising process of a diffusers scheduler: noised samples, training targets, signal-to-noise ratio.

Shape legend: B batch; samples are (B, C, H, W) in model space.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsight.common.errors import require
from sparsight.common.training.dtypes import sent
from sparsight.diffusion.pipelines.schedulers import flow_sigmas, is_flow_matching

NO_SIGNAL = 1e-6  # alpha^2 of a last step that is noise alone; Euler schedulers hold 2^-24 in place of 0
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def _expand(coefficient_B: Tensor, like: Tensor) -> Tensor:
    return sent(coefficient_B.float(), like.device).view(-1, *[1] * (like.ndim - 1))


@runtime_checkable
class KnowsSignal(Protocol):
    """A scheduler that tells the share of the signal, squared, at every training step."""

    config: Any
    alphas_cumprod: Tensor


class NoiseProcess:
    """x_t = alpha_t x_0 + sigma_t eps, with what the denoiser is trained to predict at t.

    Variance preserving schedulers (DDPM, DDIM, DPM-Solver ...) give ``epsilon``, ``v_prediction`` (Salimans and Ho,
    arXiv 2202.00512) or ``sample``; flow-matching schedulers (Lipman et al., arXiv 2210.02747) give ``flow``:
    alpha = 1 - sigma and target eps - x_0.

    Args:
        scheduler: A diffusers scheduler; only its training configuration is used.

    Raises:
        ValueError: The scheduler has neither ``alphas_cumprod`` nor flow-matching sigmas, or its prediction type is
            unknown.
    """

    def __init__(self, scheduler: Any) -> None:
        self.num_train_timesteps: int = scheduler.config.num_train_timesteps
        require(self.num_train_timesteps >= 1, "num_train_timesteps", self.num_train_timesteps, "1 or more (scheduler)")
        if is_flow_matching(scheduler):
            self.prediction_type = "flow"
            self._sigma_T = flow_sigmas(scheduler)
            self._alpha_T = 1 - self._sigma_T
            self.timesteps_T = self._sigma_T * self.num_train_timesteps
        elif isinstance(scheduler, KnowsSignal):
            self.prediction_type = scheduler.config.prediction_type
            signal_T = scheduler.alphas_cumprod.float()
            self._alpha_T, self._sigma_T = signal_T.sqrt(), (1 - signal_T).sqrt()
            self.timesteps_T = torch.arange(self.num_train_timesteps)
        else:
            raise ValueError(
                f"{type(scheduler).__name__} tells no noise levels for training: use a scheduler with alphas_cumprod "
                "(DDPM, DDIM, DPM-Solver ...) or a FlowMatch scheduler"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction type {self.prediction_type!r} is none of {', '.join(PREDICTION_TYPES)}")

    @property
    def ends_blind(self) -> bool:
        """Whether the last step asks for the noise in noise alone, which says nothing of the image.

        Lin et al. (arXiv 2305.08891) bring the last step's signal to zero for velocity prediction.
        """
        return self.prediction_type == "epsilon" and bool(self._alpha_T[-1] ** 2 < NO_SIGNAL)

    def levels(self, time_B: Tensor) -> Tensor:
        """Noise levels (indices into the training table, int64, (B,)) for times in [0, 1), such as uniform numbers."""
        return (time_B * self.num_train_timesteps).long().clamp_max(self.num_train_timesteps - 1)

    def timestep(self, level_B: Tensor) -> Tensor:
        """What the denoiser is told at each noise level, (B,)."""
        return self.timesteps_T.to(level_B.device)[level_B]

    def level(self, timestep_B: Tensor) -> Tensor:
        """The noise level whose timestep is nearest: the inverse of :meth:`timestep`, (B,)."""
        return (
            (timestep_B[:, None].cpu().float() - self.timesteps_T[None].float()).abs().argmin(1).to(timestep_B.device)
        )

    def add_noise(self, sample: Tensor, noise: Tensor, level_B: Tensor) -> Tensor:
        """x_t for clean samples and noise of one shape (B, C, H, W)."""
        level_B = level_B.cpu()
        return _expand(self._alpha_T[level_B], sample) * sample + _expand(self._sigma_T[level_B], sample) * noise

    def target(self, sample: Tensor, noise: Tensor, level_B: Tensor) -> Tensor:
        """What a perfect denoiser returns at x_t, (B, C, H, W)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return sample
        if self.prediction_type == "flow":
            return noise - sample
        level_B = level_B.cpu()
        return _expand(self._alpha_T[level_B], sample) * noise - _expand(self._sigma_T[level_B], sample) * sample

    def snr(self, level_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 at each level, float32 (B,), on the CPU."""
        level_B = level_B.cpu()
        return self._alpha_T[level_B] ** 2 / self._sigma_T[level_B].clamp_min(1e-8) ** 2
