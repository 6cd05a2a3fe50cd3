"""What the ``inspect`` verb does: records of a split as the model will see them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule

from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError

Split = Literal["train", "val", "test"]
CONVERSATIONS = "conversations.json"
KEPT = {"train": 4, "val": 2}  # records of each split
STAGES = {"train": "fit", "val": "validate", "test": "test"}


@runtime_checkable
class Described(Protocol):
    """Data that can be shown record by record."""

    def describe(self, split: str, index: int) -> str:
        """A record of a split as the model sees it."""
        ...

    def prepare_data(self) -> None:
        """Download what they need."""
        ...

    def setup(self, stage: str) -> None:
        """Open what a stage needs."""
        ...


@runtime_checkable
class Shown(Protocol):
    """Data whose records a page can show."""

    def shown(self, split: str, index: int) -> dict[str, Any]:
        """A record as plain data: title, facts, and the parts of its text with whether they carry the loss."""
        ...


def keep_records(data: object, folder: Path) -> None:
    """Write the first records of training and validation into ``CONVERSATIONS``, for the page of the run.

    Args:
        data: The datamodule of a run, set up; nothing is written for data that cannot be shown.
        folder: The run's log folder.
    """
    if not isinstance(data, Shown):
        return
    found = []
    for split, count in KEPT.items():
        for index in range(count):
            with suppress(ValueError):  # no such split or record, or one that cannot be used
                found.append(data.shown(split, index))
    if found:
        write_text(folder / CONVERSATIONS, json.dumps(found, ensure_ascii=False, indent=1))


def show_records(datamodule: LightningDataModule, *, split: Split, index: int, count: int) -> None:
    """Print what a datamodule says of its records; one that cannot be used says why.

    Args:
        datamodule: With a method ``describe(split, index)`` that returns text.
        split: Which of its splits.
        index: Position of the first record in the source of the split.
        count: Number of records.

    Raises:
        ConfigurationError: The datamodule cannot describe records, has no such split, or none of these can be shown.
    """
    if not isinstance(datamodule, Described):
        raise ConfigurationError(
            f"{type(datamodule).__name__} does not describe records: use datamodules.InstructionDataModule"
        )
    if count < 1:
        raise ConfigurationError(f"count is {count}; allowed: 1 or more")
    datamodule.prepare_data()
    datamodule.setup(STAGES[split])
    shown = 0
    for position in range(index, index + count):
        try:
            print(datamodule.describe(split, position), end="\n\n")
            shown += 1
        except ValueError as error:
            reason = f"{split} record {position} cannot be used: {error}"
            if not shown and position == index + count - 1:
                raise ConfigurationError(reason) from error
            print(reason, end="\n\n")
