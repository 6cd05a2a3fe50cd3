"""Batches of a datamodule outside of training: to score, analyse or calibrate a module with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from sparsight.common.errors import ConfigurationError

Split = Literal["train", "val"]
_log = logging.getLogger(__name__)


def refuse_processes(trainer: Trainer) -> None:
    """Raise a ConfigurationError where more than one process is at work."""
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"analyze runs in one process, not {trainer.world_size}: give --trainer.devices 1 and --trainer.num_nodes 1"
        )


def calibration_batches(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None, split: Split, count: int
) -> Iterator[Any]:
    """So many batches of a split, one after the other, from a datamodule that is set up as for fit or validate.

    The datamodule is opened by this call and not with the first batch, which may be wanted under autocast: a teacher
    would draw its samples in that precision.

    Raises:
        ConfigurationError: There is no datamodule, or the split has no batches; one that has fewer is warned of.
    """
    return _drawn(_batches(trainer, module, datamodule, split), split, count)


def _drawn(batches: Iterable[Any], split: Split, count: int) -> Iterator[Any]:
    drawn = 0
    for batch in islice(batches, count):
        drawn += 1
        yield batch
    if not drawn:
        raise ConfigurationError(f"the {split} split has no batches to calibrate on, or batches is {count}")
    if drawn < count:
        _log.warning("the %s split has %d batches, not %d", split, drawn, count)


def _batches(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None, split: Split
) -> Iterable[Any]:
    if datamodule is None:
        raise ConfigurationError("analyze needs calibration data: configure `data`")
    trainer.strategy.connect(module)
    module.trainer = trainer
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit" if split == "train" else "validate")
    loaders = datamodule.train_dataloader() if split == "train" else datamodule.val_dataloader()
    return chain.from_iterable([loaders] if isinstance(loaders, DataLoader) else loaders)
