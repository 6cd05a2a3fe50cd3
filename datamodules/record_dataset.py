"""Chosen records of a source as samples; an unreadable one is replaced by the next that can be read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datamodules.sources.records import CorruptRecord, RecordSource
from sparsight.common.errors import Told

_COUNTED = 100  # in a row, so that whoever reads the message knows whether it is one record or all of them


class TooManyCorruptRecords(Told, RuntimeError):
    """More records are unreadable than ``allowed.corrupt_share`` allows."""


class RecordDataset(Dataset):
    """Samples of chosen records; subclass it to say what a sample and a batch are.

    Args:
        source: Opened source.
        indices: Records that belong to the data set, as positions in the source.
        groups: Number of the group of every chosen record, where batches are of one group.
        max_corrupt: Number of unreadable records that is tolerated.
    """

    def __init__(self, source: RecordSource, *, indices: np.ndarray, groups: np.ndarray, max_corrupt: int) -> None:
        self.source = source
        self.indices = indices
        self.groups = groups
        self.max_corrupt = max_corrupt
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch that random changes depend on; called before workers start."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of chosen records."""
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Sample at a position, with the unreadable records that were passed over on the way to it.

        Raises:
            TooManyCorruptRecords: If more records in a row are unreadable than are tolerated.
        """
        corrupt: dict[int, str] = {}
        sample: dict[str, Any] | None = None
        for step in range(len(self.indices)):
            index = int(self.indices[(position + step) % len(self.indices)])
            try:
                sample = self.sample(index, group=self.groups[position])
                break
            except CorruptRecord as error:
                where, reason = self.source.where(index), str(error)
                corrupt[index] = reason if where in reason else f"{where}: {reason}"
            if len(corrupt) > max(self.max_corrupt, _COUNTED):
                break
        if sample is not None and len(corrupt) <= self.max_corrupt:
            return {**sample, "index": index, "corrupt": corrupt}
        raise TooManyCorruptRecords(corrupt_message(corrupt, total=len(self), allowed=self.max_corrupt))

    @abstractmethod
    def sample(self, index: int, *, group: int) -> dict[str, Any]:
        """Make a sample of one record for a batch of a group.

        Raises:
            CorruptRecord: If this record cannot be used.
        """

    @abstractmethod
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, with the passed over records of all samples under ``corrupt``."""


def join_corrupt(samples: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The records that were passed over on the way to any of these samples."""
    return {index: reason for sample in samples for index, reason in sample["corrupt"].items()}


def told_record(index: int, reason: str) -> str:
    """Name a record before its reason, unless that begins with it."""
    return reason if reason.startswith(f"record {index} ") else f"record {index}: {reason}"


def corrupt_message(corrupt: dict[int, str], *, total: int, allowed: int) -> str:
    """Say how many records are unreadable, show the first three and what to do."""
    shown = "; ".join(told_record(index, reason) for index, reason in list(corrupt.items())[:3])
    return (
        f"{len(corrupt)} of {total} records are unreadable, {allowed} are allowed: {shown}. "
        "Repair or remove them, change the option that a reason names, or raise allowed.corrupt_share"
    )
