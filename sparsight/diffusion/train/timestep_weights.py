"""Weights of losses over timesteps, each one formula."""

from __future__ import annotations

import torch
from torch import Tensor


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


def paper_weight(snr_B: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weight of the output loss in the DeltaConvFusion paper (arXiv 2504.21292), (B,).

    min(gamma * SNR, 1) weighs the error of the noise, which the paper's denoisers predict; times what turns an error of
    the prediction into one of the noise: 1 for ``epsilon``, SNR / (SNR + 1) for ``v_prediction``,
    SNR / (sqrt(SNR) + 1)^2 for ``flow``, SNR for ``sample``.
    """
    clipped_B = torch.clamp_max(gamma * snr_B, 1.0)
    if prediction_type == "v_prediction":
        return clipped_B * snr_B / (snr_B + 1)
    if prediction_type == "flow":
        return clipped_B * snr_B / (snr_B.sqrt() + 1).square()
    return clipped_B * snr_B if prediction_type == "sample" else clipped_B
