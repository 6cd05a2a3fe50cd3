"""At which noise levels is trained how often.

Time runs from 0, the sample, to 1, noise alone; B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsight.common.errors import require

MOST_MODE = 2 / (math.pi - 2)


@dataclass(frozen=True)
class Timesteps:
    """A density of times, from which training draws; samples and trajectories of evaluation are drawn alike.

    Trajectory states have their times already.

    Args:
        density: ``uniform``; ``logit_normal``, the logistic function of a normal number, or ``mode``, which has more or
            fewer in the middle (Esser et al., arXiv 2403.03206, section 3.1; for flow matching).
        mean: Of the normal number: above 0 is more noise.
        std: Its standard deviation.
        mode_scale: Of ``mode``: above 0 favours the middle, below 0 the ends; -1 to 1.75.
        shifted: Shift times as the pipeline does for a sample of that size, where its scheduler's shift depends on that
            (``use_dynamic_shifting``). A fixed shift is in the scheduler's levels already.

    Raises:
        ConfigurationError: A number is out of range.
    """

    density: Literal["uniform", "logit_normal", "mode"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29
    shifted: bool = True

    def __post_init__(self) -> None:
        require(math.isfinite(self.mean), "timesteps.mean", self.mean, "a finite number")
        require(0 < self.std < math.inf, "timesteps.std", self.std, "above 0")
        # beyond it times would not rise with the number that they are made of
        fits = -1 <= self.mode_scale <= MOST_MODE
        require(fits, "timesteps.mode_scale", self.mode_scale, f"-1 to {MOST_MODE:.2f}")

    def times(self, uniform_B: Tensor) -> Tensor:
        """Times in [0, 1), float64 (B,), for uniform numbers in [0, 1), with which they rise."""
        uniform_B = uniform_B.double()
        if self.density == "logit_normal":
            return (self.mean + self.std * torch.special.ndtri(uniform_B)).sigmoid()
        if self.density == "mode":
            rest_B = 1 - uniform_B
            bend_B = (math.pi / 2 * rest_B).cos().square() - 1 + rest_B
            return (1 - rest_B - self.mode_scale * bend_B).clamp(0, 1 - 1e-12)
        return uniform_B


EVEN = Timesteps(shifted=False)
"""All levels of the scheduler alike, as evaluations draw them."""
