"""Relative L2 errors: over a whole data set, whatever the batches and processes, and over the last training steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsight.common.training.processes import summed

RECENT = 0.95  # share of the running mean that a step keeps


class RelativeErrors:
    """sqrt(sum of squared errors / sum of the teacher's squares), by name.

    Every process must have updated the same names before ``compute``.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def update(self, squares: Mapping[str, tuple[Tensor, Tensor]], count: int) -> None:
        """Add mean squares (error, teacher) of ``count`` samples."""
        for name, pair in squares.items():
            added = torch.stack([square.detach().double() for square in pair]) * count
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def compute(self) -> dict[str, float]:
        """The errors by name over all processes; empty if there was nothing. Starts anew."""
        names, sums = list(self._sums), list(self._sums.values())
        self._sums = {}
        if not names:
            return {}
        error, power = summed(torch.stack(sums)).unbind(1)
        return dict(zip(names, (error / power.clamp_min(1e-12)).sqrt().tolist(), strict=True))


class RecentErrors:
    """Running means over the last steps, by name."""

    def __init__(self) -> None:
        self._means: dict[str, Tensor] = {}

    def update(self, errors: Mapping[str, Tensor]) -> None:
        """Add a step's; one that is not finite is left out, as the step is, and says nothing."""
        for name, error in errors.items():
            recent = self._means.get(name, error)
            recent = torch.where(recent.isfinite(), recent, error)
            self._means[name] = torch.where(error.isfinite(), torch.lerp(error, recent, RECENT), recent)

    def by_site(self) -> dict[str, float]:
        """The means."""
        return {name: float(error) for name, error in self._means.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: error.cpu() for name, error in self._means.items()}

    def take(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from it."""
        self._means = {name: error.to(device) for name, error in state.items()}
