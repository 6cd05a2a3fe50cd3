"""Relative L2 errors over a whole data set, whatever the batches and the number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsight.common.training.processes import summed


class RelativeErrors:
    """sqrt(sum of squared errors / sum of the teacher's squares), by name.

    Every process must have updated the same names before :meth:`compute`.
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
