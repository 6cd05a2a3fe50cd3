"""Relative L2 errors: over a whole data set, whatever the batches and processes, and over the last training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    """Running means over the last steps, by name.

    Args:
        names: Of all S errors.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._means_S: Tensor | None = None

    def update(self, errors_S: Tensor) -> None:
        """Add a step's; one that is not finite is left out, as the step is, and says nothing."""
        recent_S = errors_S if self._means_S is None else self._means_S
        recent_S = torch.where(recent_S.isfinite(), recent_S, errors_S)
        self._means_S = torch.where(errors_S.isfinite(), torch.lerp(errors_S, recent_S, RECENT), recent_S)

    def by_site(self) -> dict[str, float]:
        """The means; none before the first step."""
        return {} if self._means_S is None else dict(zip(self.names, self._means_S.tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {} if self._means_S is None else dict(zip(self.names, self._means_S.cpu().unbind(), strict=True))

    def take(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from it."""
        self._means_S = torch.stack([state[name] for name in self.names]).to(device) if state else None
