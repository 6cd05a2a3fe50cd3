"""What the ``reformulate`` verb does: the tasks of an evaluation as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from sparsight.common.errors import ConfigurationError


def store_tasks(datamodule: LightningDataModule, folder: Path) -> None:
    """Let a datamodule write its tasks, and say what is there.

    Raises:
        ConfigurationError: It has no tasks.
    """
    store: Any = getattr(datamodule, "store", None)
    if not callable(store):
        raise ConfigurationError(f"{type(datamodule).__name__} has no tasks: use datamodules.ReformEvalDataModule")
    datamodule.prepare_data()
    for path, samples in store(folder).items():
        print(f"{path}: {samples} samples")
