"""Losses of distillation and denoising, each one formula.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12  # a teacher that answers zero must not make an error infinite


def mean_squares(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square of the student's error, and of the teacher itself, over batch, tokens and channels.

    Both tensors have one shape, e.g. (B, N, C); computed in fp32.
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().mean(), teacher.square().mean()


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's mean square: 1 means "as bad as zero"; its square root is the relative L2."""
    error, power = mean_squares(student, teacher)
    return error / power.clamp_min(TINY)


def min_snr_weight(snr_B: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Min-SNR loss weight (Hang et al., arXiv 2303.09556), (B,).

    min(SNR, gamma) weighs the error of x_0; divided by what turns an error of the prediction into one of x_0:
    SNR for ``epsilon``, SNR + 1 for ``v_prediction``, (sqrt(SNR) + 1)^2 for ``flow``, 1 for ``sample``.
    """
    clipped_B = snr_B.clamp_max(gamma)
    if prediction_type == "epsilon":
        return clipped_B / snr_B.clamp_min(1e-12)
    if prediction_type == "v_prediction":
        return clipped_B / (snr_B + 1)
    if prediction_type == "flow":
        return clipped_B / (snr_B.sqrt() + 1).square()
    return clipped_B


def snr_over_gamma_weight(snr_B: Tensor, gamma: float) -> Tensor:
    """Weight of the output loss in the DeltaConvFusion paper: min(gamma * SNR, 1), (B,); arXiv 2504.21292."""
    return torch.clamp_max(gamma * snr_B, 1.0)
