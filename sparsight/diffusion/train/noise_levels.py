"""Which noise levels a denoiser learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsight.common.errors import require
from sparsight.diffusion.model.timesteps import Timesteps


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """How often each noise level is trained at, and what its loss weighs.

    Args:
        timesteps: At which noise levels is trained how often; all alike, shifted by the size as the pipeline does, if
            not given.
        snr_gamma: Clip of the min-SNR loss weight (Hang et al., arXiv 2303.09556); none weighs all timesteps alike.

    Raises:
        ValueError: ``snr_gamma`` is out of range.
    """

    timesteps: Timesteps | None = None
    snr_gamma: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        gamma = self.snr_gamma
        require(gamma is None or 0 < gamma < math.inf, "snr_gamma", gamma, "above 0, or null")
