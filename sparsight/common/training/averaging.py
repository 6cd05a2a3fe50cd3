"""What the rest of a run knows of the moving average that a callback keeps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

AVERAGE = "average"  # key of a callback's state in checkpoints


@runtime_checkable
class Averaging(Protocol):
    """A callback that keeps a moving average of what is trained."""

    def averaged(self, pl_module: LightningModule) -> AbstractContextManager[None]:
        """The module with the average in place."""
        ...


def averaging(trainer: Trainer) -> Averaging | None:
    """The first callback of a run that keeps an average, if one does."""
    return next((each for each in trainer.callbacks if isinstance(each, Averaging)), None)  # type: ignore[attr-defined]


def average_in(states: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The average among the states of callbacks that a checkpoint holds, by names of parameters, if there is one."""
    kept = (state for state in states.values() if isinstance(state, Mapping) and AVERAGE in state)
    return next((state[AVERAGE] for state in kept), None)
