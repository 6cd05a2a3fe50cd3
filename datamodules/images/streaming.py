"""Batches of images from data sets too large to index."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from datamodules.allowed import AllowedImages
from datamodules.base import note_corrupt, too_many_unused
from datamodules.images.buckets import trained_model
from datamodules.images.class_check import check_batch, check_classes, number_of_classes
from datamodules.images.image import ImageDataModule
from datamodules.images.image_dataset import ImageTransform
from datamodules.images.size_check import check_size
from datamodules.images.stream_dataset import StreamDataset, StreamLoader, place_of
from datamodules.images.transform_options import TransformOptions
from datamodules.process import ProcessDataModule
from datamodules.record_dataset import TooManyCorruptRecords, corrupt_message
from datamodules.sampler import ReportingLoader
from datamodules.sources.identity import identity_of
from datamodules.sources.records import RecordSource, RecordStream, unused_message
from sparsight.common.errors import ConfigurationError
from sparsight.common.moved import takes_former_options
from sparsight.diffusion.model.diffusion_model import DiffusionModel

_FIRST_RECORDS = 1000  # too few to tell the share of unreadable ones
_log = logging.getLogger(__name__)


@takes_former_options
class StreamingImageDataModule(ProcessDataModule):
    """Training images from a stream, without an end; validation and test images from record sources.

    Batches are those of ``ImageDataModule``; ``index`` tells shard and position, so it is the same in every run.

    In each pass over the data every record is met once, whatever the number of processes and workers: whole shards are
    shared out among them in an order drawn from (seed, pass), and ``shuffle_buffer`` consecutive records are shuffled
    together. A resumed run goes on with the next batch, exactly, if processes and workers are as many as before;
    otherwise it starts the next pass. As shards differ in length, processes may be in different passes.

    Args:
        train: Where training records come from.
        val: Where validation records come from, or ``None``.
        test: Where test records come from, or ``None``.
        batches_per_epoch: Batches of what Lightning calls an epoch: how often validation and the like happen.
        shuffle_buffer: Records that each worker reads, still encoded, and shuffles together; 1 keeps their order.
        image_size: Side, or (height, width), of the images in pixels.
        transform: What else is done to them.
        batch_size: Records a batch and process.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of order and flips.
        allowed: How much of the records may be unusable, and which classes they may have; shares hold for the stream
            after its first 1000 records.

    Attributes:
        corrupt: Unreadable training records that this process has met, with the reason.
        unused: Files or members beside training records that this process has met and does not use.
    """

    wing = "diffusion"

    def __init__(
        self,
        train: RecordStream,
        val: RecordSource | None = None,
        test: RecordSource | None = None,
        batches_per_epoch: int = 1000,
        shuffle_buffer: int = 1000,
        image_size: int | tuple[int, int] = 32,
        transform: TransformOptions = TransformOptions(),
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        allowed: AllowedImages = AllowedImages(),
    ) -> None:
        super().__init__(num_workers=num_workers)
        for name, number in (("batches_per_epoch", batches_per_epoch), ("shuffle_buffer", shuffle_buffer)):
            if number < 1:
                raise ValueError(f"{name} is {number}; allowed: 1 or more")
        self.stream = train
        self.batches_per_epoch, self.shuffle_buffer = batches_per_epoch, shuffle_buffer
        # checks the options, and serves what is evaluated
        self.evaluated = ImageDataModule(
            train=None,
            val=val,
            test=test,
            image_size=image_size,
            transform=transform,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            allowed=allowed,
        )
        self.corrupt: dict[int, str] = {}
        self.unused: dict[str, None] = {}
        self._seen = 0
        self._model_classes: int | None = None
        self._is_open = False
        self._identity: dict[str, Any] | None = None

    @property
    def transform(self) -> ImageTransform:
        """What is done to every image."""
        return self.evaluated.transform

    @property
    def classes(self) -> list[str] | None:
        """Names of the training classes in the order of their numbers; known after ``setup``."""
        return self.stream.classes

    def identity(self) -> dict[str, Any] | None:
        """What tells the stream's files from others, so that a run does not go on with others; once it is open."""
        if self._identity is None and self._is_open:
            self._identity = identity_of(self.stream)
        return self._identity

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """Samples a batch, their height and width in a model's space."""
        return self.evaluated.batch_shape(model)

    def check_paths(self) -> None:
        """See that the files that stream and sources name are there, without reading them."""
        self.stream.check_paths()
        self.evaluated.check_paths()

    def open_early(self, stage: str) -> None:
        """Open the stream, where training needs it, and the sources on this machine."""
        if stage == "fit" and self.stream.is_local:
            self.stream.open()
        self.evaluated.open_early(stage)

    def prepare_data(self) -> None:
        """Download what the sources need, in one process a machine."""
        self.stream.prepare()
        self.evaluated.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs.

        Raises:
            FileNotFoundError: If files are missing.
            ValueError: If the stage has no source or the data is not what the options say.
        """
        if stage in (None, "fit"):
            self.stream.open()
            self._is_open = True
            model = trained_model(self.trainer)
            self._model_classes = number_of_classes(model)
            if model is not None:
                check_size(self.transform, model)
            if model is not None and not self.evaluated.other_classes:
                check_classes(self.stream, model, split="train")
        self.evaluated.trainer = self.trainer
        self.evaluated.setup(stage)

    # ------------------------------------------------------------------------------------------------------ loaders
    def train_dataloader(self) -> StreamLoader:
        """Batches of the stream.

        Raises:
            ValueError: If the stream has fewer shards than there are processes times workers.
        """
        options = self.evaluated
        dataset = StreamDataset(
            self.stream,
            transform=self.transform,
            flip_seed=options.seed if options.horizontal_flip else None,
            seed=options.seed,
            block=self.shuffle_buffer,
            rank=self._rank,
            processes=self._world,
            workers=max(1, self.num_workers),
        )
        loader = StreamLoader(
            dataset,
            batches=self.batches_per_epoch,
            batch_size=options.batch_size,
            **self._loader_options(dataset.collate),
        )
        loader.receive = lambda batch, last: self._receive(loader.deliver(batch))
        self._limit_epochs(loader)
        return loader

    def val_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All validation records in their order, none twice; an empty list if there are none."""
        return self.evaluated.val_dataloader()

    def test_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """All test records in their order, none twice; an empty list if there are none."""
        return self.evaluated.test_dataloader()

    def predict_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """What to draw images for: the labels or captions of the test records, or of the validation records."""
        return self.evaluated.predict_dataloader()

    def _receive(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = batch.pop("corrupt")
        self._seen += len(batch["index"]) + len(found)
        note_corrupt(self.corrupt, found, split="train")
        check_batch(batch, classes=self._model_classes, where=lambda index: self.stream.where(*place_of(index)))
        self._note_unused(batch.pop("unused"))
        allowed = int(self.evaluated.allowed.corrupt_share * max(self._seen, _FIRST_RECORDS))
        if len(self.corrupt) > allowed:
            raise TooManyCorruptRecords(corrupt_message(self.corrupt, total=self._seen, allowed=allowed))
        return batch

    def _note_unused(self, names: Iterable[str]) -> None:
        """Tell the first, and then whenever they have doubled.

        Raises:
            ConfigurationError: They are too many.
        """
        before = len(self.unused)
        self.unused |= dict.fromkeys(names)
        kind, unused = type(self.stream).__name__, list(self.unused)
        if len(unused).bit_length() > before.bit_length():
            _log.warning("%s, so far: %s", kind, unused_message(unused))
        share = self.evaluated.allowed.unused_share
        if len(unused) > share * (max(self._seen, _FIRST_RECORDS) + len(unused)):
            raise ConfigurationError(too_many_unused(kind, self._seen, unused, share=share))
