"""The data of a run, asked of its trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def datamodule_of(trainer: Trainer | None) -> Any:
    """The datamodule of a trainer; none before it is given one, and of a run that is given loaders."""
    return getattr(trainer, "datamodule", None)  # Lightning sets it in `fit` and its like, and declares it nowhere
