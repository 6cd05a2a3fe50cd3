"""Batches of images in [-1, 1] with labels or captions, from any record source."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.buckets import AspectBuckets, trained_model
from datamodules.image_dataset import (
    Fit,
    ImageDataset,
    ImageTransform,
    TooManyCorruptRecords,
    corrupt_message,
)
from datamodules.records import RecordSource
from datamodules.sampler import (
    GroupSampler,
    ReportingLoader,
    ResumableLoader,
    ResumableSampler,
    derive_seed,
    epoch_batches,
    even_batch_size,
)

_log = logging.getLogger(__name__)
_LOGGED_RECORDS = 20


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; allowed: {allowed}")


class ImageDataModule(LightningDataModule):
    """Batches of images with class labels or captions from any record source.

    A batch is ``{"image": float32 (B, C, H, W) in [-1, 1], "index": int64 (B,) positions in the source}``, with
    ``"label": int64 (B,)`` where the source has labels and ``"caption": list[str]`` where it has captions.

    The training order depends on (seed, epoch), flips on (seed, epoch, index) and the split on the seed alone; a
    checkpoint written in the middle of an epoch goes on with the next batch of that epoch.

    Args:
        train: Where training records come from; ``None`` if there is no training.
        val: Where validation records come from; ``None`` takes ``val_share`` of ``train``.
        test: Where test records come from.
        val_share: Share of ``train``, 0 to 1, held out for validation when ``val`` is not given.
        image_size: Side, or (height, width), of the images in pixels.
        buckets: Bring each training image to the size of this area that is nearest to its own proportions; every batch
            then has one size. Validation and test images have ``image_size``.
        channels: 1 (grey) or 3 (RGB).
        fit: How images of other sizes get there: ``crop``, ``pad`` or ``stretch`` (see ``ImageTransform``).
        background: Value, 0 to 255, of padding and behind transparent pixels.
        horizontal_flip: Mirror each training image with probability 1/2.
        batch_size: Records a batch and process; the global batch is this times the number of processes.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of order, flips, split and ``limit``.
        max_corrupt_share: Share of unreadable records of a split, 0 to 1, above which the run fails.
        limit: Use at most this many records of each of train, val and test, drawn with the seed.

    Attributes:
        datasets: Data set of each split, once ``setup`` has run.
        corrupt: Unreadable records that this process has met: for each split, position in the source and reason.
    """

    def __init__(
        self,
        train: RecordSource | None,
        val: RecordSource | None = None,
        test: RecordSource | None = None,
        val_share: float = 0.0,
        image_size: int | tuple[int, int] = 32,
        channels: Literal[1, 3] = 3,
        fit: Fit = "crop",
        background: int = 0,
        horizontal_flip: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        max_corrupt_share: float = 0.01,
        limit: int | None = None,
        buckets: AspectBuckets | None = None,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test}
        self.val_share = val_share
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.transform = ImageTransform(height, width, channels, fit, background)
        self.horizontal_flip = horizontal_flip
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_corrupt_share = max_corrupt_share
        self.limit = limit
        self.buckets = buckets
        self.datasets: dict[str, Any] = {}
        self.corrupt: dict[str, dict[int, str]] = {name: {} for name in self.sources}
        self._check_options()

    # ------------------------------------------------------------------------------------------------------ options
    def _check_options(self) -> None:
        _require(self.transform.height >= 1 and self.transform.width >= 1, "image_size", self.transform, "1 or more")
        _require(self.transform.channels in (1, 3), "channels", self.transform.channels, "1 or 3")
        _require(self.transform.fit in get_args(Fit), "fit", self.transform.fit, ", ".join(get_args(Fit)))
        _require(0 <= self.transform.background <= 255, "background", self.transform.background, "0 to 255")
        _require(0.0 <= self.val_share < 1.0, "val_share", self.val_share, "0 up to, not including, 1")
        _require(0.0 <= self.max_corrupt_share <= 1.0, "max_corrupt_share", self.max_corrupt_share, "0 to 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more, or null")
        if self.sources["val"] is not None and self.val_share > 0:
            raise ValueError(
                f"val_share is {self.val_share} but `val` is given too; leave one of them out, a run validates on one"
            )

    # --------------------------------------------------------------------------------------------------------- data
    @property
    def classes(self) -> list[str] | None:
        """Names of the training classes in the order of their numbers; known after ``setup``."""
        source = self.sources["train"]
        return None if source is None else source.classes

    def prepare_data(self) -> None:
        """Download what the sources need, in one process a machine."""
        for source in self.sources.values():
            if source is not None:
                source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the sources that the stage needs and draw the splits.

        Raises:
            FileNotFoundError: If a source's files are missing.
            ValueError: If the stage has no source, a split has no records or the sources disagree about classes.
        """
        opened = self._needed(stage)
        for name, source in opened.items():
            source.open()
            if len(source) == 0:
                raise ValueError(f"the {name} source {type(source).__name__} has no records; check its path and split")
        self._check_classes(opened)
        model = trained_model(self.trainer)
        if self.buckets is not None and "train" in opened and model is not None:
            self.buckets.check_fits(model)
        for name, source in opened.items():
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(derive_seed(self.seed)))
            if name == "train" and self.val_share > 0:
                held_out = self._held_out(len(source))
                self._add_dataset("val", source, order[:held_out])
                order = order[held_out:]
            self._add_dataset(name, source, order)

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
        transforms, groups = [self.transform], np.zeros(len(indices), dtype=np.int64)
        if self.buckets is not None and name == "train":
            sizes = self.buckets.sizes(self.transform.height, self.transform.width)
            groups = self.buckets.assign(self.buckets.measure(source)[indices], sizes)
            transforms = [replace(self.transform, height=height, width=width) for height, width in sizes]
        self.datasets[name] = ImageDataset(
            source,
            indices=indices,
            transforms=transforms,
            groups=groups,
            flip_seed=self.seed if self.horizontal_flip and name == "train" else None,
            max_corrupt=int(self.max_corrupt_share * len(indices)),
        )

    def _needed(self, stage: str | None) -> dict[str, RecordSource]:
        held_out = self.sources["val"] is None and self.val_share > 0
        validation = "train" if held_out else "val"
        predicted = validation if self.sources["test"] is None else "test"
        names = {"fit": ("train", "val"), "validate": (validation,), "test": ("test",), "predict": (predicted,)}
        wanted = names["fit"] + names["test"] if stage is None else names[stage]
        found = {name: source for name in wanted if (source := self.sources[name]) is not None}
        if stage in ("validate", "test", "predict") and not found:
            remedy = "`test`" if stage == "test" else "`val` or val_share"
            raise ValueError(f"there are no records to {stage} on; set {remedy} of the datamodule")
        return found

    @staticmethod
    def _check_classes(opened: dict[str, RecordSource]) -> None:
        named = {name: source.classes for name, source in opened.items() if source.classes is not None}
        if any(classes != next(iter(named.values())) for classes in named.values()):
            raise ValueError(f"the sources disagree about the classes: {named}; give all of them the same `classes`")

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
            **self._loader_options(dataset),
        )
        loader.receive = partial(self._receive, "train")
        if len(loader) == 0:
            of_a_size = "" if self.buckets is None else " of one size"
            raise ValueError(
                f"{len(dataset)} training records do not fill one batch of {self.batch_size}{of_a_size} on each of "
                f"{self._world} processes; lower batch_size or give more data"
            )
        if self.trainer is not None:
            loader.epoch_batches = epoch_batches(len(loader), self.trainer.limit_train_batches)
        return loader

    def _train_sampler(self, dataset: Any) -> ResumableSampler:
        share: dict[str, Any] = {"num_replicas": self._world, "rank": self._rank, "seed": self.seed}
        if self.buckets is None:
            return ResumableSampler(dataset, **share)
        global_batch = self.batch_size * self._world
        too_few = [count for count in np.bincount(dataset.groups) if 0 < count < global_batch]
        if too_few:
            _log.warning(
                "%d images of %d sizes are never trained on: no size of them fills a batch of %d; lower batch_size, "
                "buckets.max_ratio or raise buckets.cell",
                *(sum(too_few), len(too_few), global_batch),
            )
        return GroupSampler(dataset.groups.tolist(), global_batch=global_batch, **share)

    def val_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All validation records in their order, none twice; an empty list if there are none."""
        return self._eval_loader("val")

    def test_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All test records in their order, none twice; an empty list if there are none."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """What to draw images for: the labels or captions of the test records, or of the validation records."""
        return self._eval_loader("test" if "test" in self.datasets else "val")

    def _eval_loader(self, name: str) -> ReportingLoader | list[ReportingLoader]:
        if name not in self.datasets:
            return []
        dataset = self.datasets[name]
        batch_size = even_batch_size(len(dataset), batch_size=self.batch_size, processes=self._world)
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, shuffle=False, drop_last=False)
        loader = ReportingLoader(dataset, sampler=sampler, batch_size=batch_size, **self._loader_options(dataset))
        loader.receive = partial(self._receive, name)
        return loader

    def _loader_options(self, dataset: Any) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": dataset.collate,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    # ---------------------------------------------------------------------------------------------- corrupt records
    def _receive(self, name: str, batch: dict[str, Any], last: bool) -> dict[str, Any]:
        found, dataset = self.corrupt[name], self.datasets[name]
        for index, reason in batch.pop("corrupt").items():
            if index not in found and len(found) < _LOGGED_RECORDS:
                _log.warning("skipped %s record %d: %s", name, index, reason)
            found[index] = reason
        if len(found) > dataset.max_corrupt:
            raise TooManyCorruptRecords(corrupt_message(found, total=len(dataset), allowed=dataset.max_corrupt))
        if last and found:
            _log.warning("%d of %d %s records are unreadable and were skipped", len(found), len(dataset), name)
        return batch
