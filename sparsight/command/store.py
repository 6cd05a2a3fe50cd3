"""What the ``reformulate`` verb does: the tasks of an evaluation as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule

from sparsight.common.errors import ConfigurationError


@runtime_checkable
class Stored(Protocol):
    """Data that can be written as files."""

    def store(self, folder: Path) -> Mapping[Path, int]:
        """Write them; says which files hold how many samples."""
        ...

    def prepare_data(self) -> None:
        """Download what they need."""
        ...


def store_tasks(datamodule: LightningDataModule, folder: Path) -> None:
    """Let a datamodule write its tasks, and say what is there.

    Raises:
        ConfigurationError: It has no tasks.
    """
    if not isinstance(datamodule, Stored):
        raise ConfigurationError(f"{type(datamodule).__name__} has no tasks: use datamodules.ReformEvalDataModule")
    datamodule.prepare_data()
    for path, samples in datamodule.store(folder).items():
        print(f"{path}: {samples} samples")
