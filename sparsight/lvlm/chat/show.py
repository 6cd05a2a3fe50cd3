"""What the ``inspect`` verb does: records of a split as the model will see them."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from sparsight.common.errors import ConfigurationError

Split = Literal["train", "val", "test"]
STAGES = {"train": "fit", "val": "validate", "test": "test"}


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
    describe: Any = getattr(datamodule, "describe", None)
    if not callable(describe):
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
            print(describe(split, position), end="\n\n")
            shown += 1
        except ValueError as error:
            reason = f"{split} record {position} cannot be used: {error}"
            if not shown and position == index + count - 1:
                raise ConfigurationError(reason) from error
            print(reason, end="\n\n")
