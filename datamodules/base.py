"""Splits and loaders over record sources, which most datamodules share."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.allowed import AllowedRecords
from datamodules.process import ProcessDataModule
from datamodules.record_dataset import TooManyCorruptRecords, corrupt_message, told_record
from datamodules.sampler import (
    GroupSampler,
    ReportingLoader,
    ResumableLoader,
    ResumableSampler,
    derive_seed,
    even_batch_size,
)
from datamodules.sources.identity import identity_of
from datamodules.sources.records import RecordSource, unused_message
from sparsight.common.errors import need_kind, need_whole, require

_log = logging.getLogger(__name__)
_LOGGED_RECORDS = 20


class RecordsDataModule(ProcessDataModule):
    """Splits and batches of record sources; a subclass says what a sample is.

    The training order depends on (seed, epoch), the split on the seed alone; a checkpoint written in the middle of an
    epoch goes on with the next batch of that epoch.

    Args:
        train: Where training records come from; ``None`` if there is no training.
        val: Where validation records come from; ``None`` takes ``val_share`` of ``train``.
        test: Where test records come from.
        val_share: Share of ``train``, 0 to 1, held out for validation when ``val`` is not given.
        batch_size: Records a batch and process; the global batch is this times the number of processes.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of order, split and ``limit``.
        limit: Use at most this many records of each of train, val and test, drawn with the seed.
        allowed: How much of the records may be unusable.

    Attributes:
        datasets: Data set of each split, once ``setup`` has run.
        corrupt: Unusable records that this process has met: for each split, position in the source and reason.
        alike: What the records of a training batch have in common, such as ``one size``; empty for nothing.

    Raises:
        ValueError: An option is out of range, or two of them contradict each other.
    """

    def __init__(
        self,
        *,
        train: RecordSource | None,
        val: RecordSource | None,
        test: RecordSource | None,
        val_share: float,
        batch_size: int,
        num_workers: int,
        seed: int,
        limit: int | None,
        allowed: AllowedRecords,
    ) -> None:
        super().__init__(num_workers=num_workers)
        self.sources = {"train": train, "val": val, "test": test}
        for name, source in self.sources.items():
            need_kind(
                name, source, (RecordSource, NoneType), "a source of records, such as FolderRecords(...), or none"
            )
        self.val_share = val_share
        self.batch_size = batch_size
        self.seed = seed
        self.limit = limit
        self.allowed = allowed
        self.datasets: dict[str, Any] = {}
        self.corrupt: dict[str, dict[int, str]] = {name: {} for name in self.sources}
        self.alike = ""
        self._identity: dict[str, Any] | None = None
        need_whole(batch_size=batch_size, num_workers=num_workers, seed=seed)
        need_kind("val_share", val_share, (int, float), "a number")
        require(0.0 <= val_share < 1.0, "val_share", val_share, "0 up to, not including, 1")
        require(batch_size >= 1, "batch_size", batch_size, "1 or more")
        require(limit is None or limit >= 1, "limit", limit, "1 or more, or null")
        if val is not None and val_share > 0:
            raise ValueError(
                f"val_share is {val_share} but `val` is given too; leave one of them out, a run validates on one"
            )

    # --------------------------------------------------------------------------------------------------------- data
    @property
    def classes(self) -> list[str] | None:
        """Names of the training classes in the order of their numbers; known after ``setup``."""
        source = self.sources["train"]
        return None if source is None else source.classes

    def identity(self) -> dict[str, Any] | None:
        """What tells the training records from others, so that a run does not go on with others; once they are open."""
        source = self.sources["train"]
        if self._identity is None and source is not None and "train" in self.datasets:
            self._identity = identity_of(source)
        return self._identity

    def check_paths(self) -> None:
        """See that the files of the sources are there."""
        for source in self.sources.values():
            if source is not None:
                source.check_paths()

    def open_early(self, stage: str) -> None:
        """Open the sources on this machine that a stage needs, and see that training has a batch.

        Raises:
            FileNotFoundError: Files are missing.
            ValueError: The stage has no source, a source is not what its options say, or records do not fill a batch.
        """
        for name, source in self._needed(stage).items():
            if source.is_local:
                self._open(name, source)
                if name == "train" and stage == "fit":
                    held_out = self._held_out(len(source)) if self.val_share > 0 else 0
                    records = min(len(source) - held_out, self.limit or len(source))
                    if records < self.batch_size:
                        raise ValueError(self._too_few(records))

    def prepare_data(self) -> None:
        """Download what the sources need, in one process a machine."""
        for source in self.sources.values():
            if source is not None:
                source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the sources that the stage needs and draw the splits.

        Raises:
            FileNotFoundError: If a source's files are missing.
            ValueError: If the stage has no source, a split has no records, too many files are no part of any, or the
                sources do not go together.
        """
        opened = self._needed(stage)
        for name, source in opened.items():
            self._open(name, source)
        self._check_sources(opened)
        for name, source in opened.items():
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(derive_seed(self.seed)))
            if name == "train" and self.val_share > 0:
                held_out = self._held_out(len(source))
                self._add_dataset("val", source, order[:held_out])
                order = order[held_out:]
            self._add_dataset(name, source, order)

    @abstractmethod
    def _make_dataset(self, name: str, source: RecordSource, indices: np.ndarray, *, max_corrupt: int) -> Any:
        """Data set of one split: chosen records of an opened source."""

    def _open(self, name: str, source: RecordSource) -> None:
        source.open()
        for part in source.parts:
            self._check_unused(part)
        if len(source) == 0:
            raise ValueError(f"data.{name}: {described(source)} has no records; check its path and split")
        for part in source.parts:
            self._check_bad(part)

    def _check_sources(self, opened: Mapping[str, RecordSource]) -> None:
        """Refuse opened sources that do not go together."""

    def _check_unused(self, source: RecordSource) -> None:
        unused = source.unused
        share = self.allowed.unused_share
        if len(unused) > share * (len(source) + len(unused)):
            raise ValueError(too_many_unused(type(source).__name__, len(source), unused, share=share))

    def _check_bad(self, source: RecordSource) -> None:
        allowed = int(self.allowed.corrupt_share * len(source))
        if len(source.bad) > allowed:
            raise TooManyCorruptRecords(corrupt_message(dict(source.bad), total=len(source), allowed=allowed))

    def _held_out(self, records: int) -> int:
        held_out = round(records * self.val_share)
        if held_out in (0, records):
            raise ValueError(
                f"val_share={self.val_share} holds out {held_out} of {records} records; change it so that both "
                "training and validation have some"
            )
        return held_out

    def _add_dataset(self, name: str, source: RecordSource, chosen: Tensor) -> None:
        indices = chosen[: self.limit].sort().values.numpy()
        allowed = int(self.allowed.corrupt_share * len(indices))
        self.datasets[name] = self._make_dataset(name, source, indices, max_corrupt=allowed)

    def _needed(self, stage: str | None) -> dict[str, RecordSource]:
        held_out = self.sources["val"] is None and self.val_share > 0
        validation = "train" if held_out else "val"
        predicted = validation if self.sources["test"] is None else "test"
        names = {"fit": ("train", "val"), "validate": (validation,), "test": ("test",), "predict": (predicted,)}
        stage = stage.value if isinstance(stage, Enum) else stage  # Lightning gives an enum
        wanted = names["fit"] + names["test"] if stage is None else names[stage]
        found = {name: source for name in wanted if (source := self.sources[name]) is not None}
        if stage in ("validate", "test", "predict") and not found:
            remedy = "`test`" if stage == "test" else "`val` or val_share"
            raise ValueError(f"there are no records to {stage} on; set {remedy} of the datamodule")
        return found

    # ------------------------------------------------------------------------------------------------------ loaders
    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of equal size; the records that do not fill a last one are left out.

        Raises:
            ValueError: If there are none, or they do not fill one batch on every process.
        """
        if "train" not in self.datasets:
            raise ValueError("there are no records to fit on; set `train` of the datamodule")
        dataset = copy.copy(self.datasets["train"])  # a second loader must not change the epoch of the first
        loader = ResumableLoader(
            dataset,
            sampler=self._train_sampler(dataset),
            batch_size=self.batch_size,
            drop_last=True,
            **self._loader_options(dataset.collate),
        )
        loader.receive = partial(self._receive, "train")
        if len(loader) == 0:
            raise ValueError(self._too_few(len(dataset)))
        self._limit_epochs(loader)
        return loader

    def _too_few(self, records: int) -> str:
        alike = self.alike and f" of {self.alike}"
        return (
            f"{records} training records do not fill one batch of {self.batch_size}{alike} on each of {self._world} "
            "processes; lower batch_size or give more data"
        )

    def _train_sampler(self, dataset: Any) -> ResumableSampler:
        if not self.alike:
            return ResumableSampler(dataset, **self._share())
        global_batch = self.batch_size * self._world
        too_few = [count for count in np.bincount(dataset.groups) if 0 < count < global_batch]
        if too_few:
            _log.warning(
                "%d records in %d groups of %s are never trained on: none of these groups fills a batch of %d; lower "
                "batch_size, or form fewer groups",
                *(sum(too_few), len(too_few), self.alike, global_batch),
            )
        return self._group_sampler(dataset, global_batch=global_batch)

    def _group_sampler(self, dataset: Any, *, global_batch: int) -> GroupSampler:
        return GroupSampler(dataset.groups.tolist(), global_batch=global_batch, **self._share())

    def _share(self) -> dict[str, Any]:
        return {"num_replicas": self._world, "rank": self._rank, "seed": self.seed}

    def val_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All validation records in their order, none twice; an empty list if there are none."""
        return self._eval_loader("val")

    def test_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All test records in their order, none twice; an empty list if there are none."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """The test records, or the validation records where there are none."""
        return self._eval_loader("test" if "test" in self.datasets else "val")

    def _eval_loader(self, name: str) -> ReportingLoader | list[ReportingLoader]:
        if name not in self.datasets:
            return []
        dataset = self.datasets[name]
        batch_size = even_batch_size(len(dataset), batch_size=self.batch_size, processes=self._world)
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, shuffle=False, drop_last=False)
        options = self._loader_options(dataset.collate)
        loader = ReportingLoader(dataset, sampler=sampler, batch_size=batch_size, **options)
        loader.receive = partial(self._receive, name)
        return loader

    # ---------------------------------------------------------------------------------------------- corrupt records
    def _receive(self, name: str, batch: dict[str, Any], last: bool) -> dict[str, Any]:
        found, dataset = self.corrupt[name], self.datasets[name]
        note_corrupt(found, batch.pop("corrupt"), split=name)
        if len(found) > dataset.max_corrupt:
            raise TooManyCorruptRecords(corrupt_message(found, total=len(dataset), allowed=dataset.max_corrupt))
        if last and found:
            _log.warning("%d of %d %s records are unreadable and were skipped", len(found), len(dataset), name)
        return batch


def described(source: RecordSource) -> str:
    """The class of a source, and the path or the files that it was given."""
    given = {name: value for name, value in vars(source).items() if name in ("root", "path", "file", "files", "images")}
    listed = ", ".join(f"{name} {value}" for name, value in given.items())
    return f"{type(source).__name__}{listed and f' of {listed}'}"


def too_many_unused(kind: str, records: int, unused: Sequence[str], *, share: float) -> str:
    """Say how many files of a kind of source are not used, and what to do."""
    return (
        f"{kind} has {records} records and {unused_message(unused)}. These are more than allowed.unused_share={share} "
        "allows: convert, rename or remove them, or raise it"
    )


def note_corrupt(found: dict[int, str], new: Mapping[int, str], *, split: str) -> None:
    """Add unusable records to those that were found, and log the first of them."""
    for index, reason in new.items():
        if index not in found and len(found) < _LOGGED_RECORDS:
            _log.warning("skipped in %s: %s", split, told_record(index, reason))
        found[index] = reason
