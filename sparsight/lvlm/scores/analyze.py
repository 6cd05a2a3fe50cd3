"""What the ``analyze`` verb does: calibration batches of a datamodule through a module's scores, into a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.scores.base import LayerScore
from sparsight.lvlm.scores.change import AngularDistance, BlockInfluence, MultimodalBlockInfluence
from sparsight.lvlm.scores.table import ScoreTable
from sparsight.publish.checkpoint import load_weights

Split = Literal["train", "val"]
_log = logging.getLogger(__name__)


def default_scores() -> list[LayerScore]:
    """Those that share one pass and need neither answers nor another model."""
    return [BlockInfluence(), MultimodalBlockInfluence(), AngularDistance("last"), AngularDistance("all")]


@runtime_checkable
class Analysed(Protocol):
    """A module whose decoder layers can be scored."""

    def analyze(self, scores: Sequence[LayerScore], batches: Sequence[Mapping[str, Any]]) -> ScoreTable:
        """Score them on calibration batches."""
        ...


def analyze_module(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    scores: Sequence[LayerScore],
    batches: int,
    split: Split,
    checkpoint: str | None,
    folder: Path,
) -> ScoreTable:
    """Score a module's decoder layers, print the table, and write it as JSON, CSV and plot.

    Args:
        trainer: Says on which device and in which precision.
        module: With a method ``analyze(scores, batches)`` that returns a score table.
        datamodule: Where calibration batches come from.
        scores: What to measure.
        batches: How many calibration batches.
        split: Which of the datamodule's splits they are from.
        checkpoint: Take the module's trained weights from here.
        folder: For the files.

    Raises:
        ConfigurationError: The module has nothing to analyse, or there are no batches, or several processes.
        FileNotFoundError: There is no such checkpoint.
    """
    if not isinstance(module, Analysed):
        raise ConfigurationError(
            f"{type(module).__name__} has no decoder layers to analyse: use lightning_modules.SparseLayerTuning"
        )
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"analyze runs in one process, not {trainer.world_size}: give --trainer.devices 1 and --trainer.num_nodes 1"
        )
    if checkpoint is not None:
        load_weights(module, checkpoint, weights="raw")
    drawn = list(islice(_batches(trainer, module, datamodule, split), batches))
    if not drawn:
        raise ConfigurationError(f"the {split} split has no batches to calibrate on, or batches is {batches}")
    if len(drawn) < batches:
        _log.warning("the %s split has %d batches, not %d", split, len(drawn), batches)
    module.to(trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context():
        table = module.analyze(scores, drawn)
    table.write(folder)
    print(table.markdown())
    print(f"\nscores.json, scores.csv and scores.png are in {folder}")
    return table


def _batches(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None, split: Split
) -> Iterable[Any]:
    """Batches of a split, from a datamodule that is set up as for fit or validate."""
    if datamodule is None:
        raise ConfigurationError("analyze needs calibration data: configure `data`")
    trainer.strategy.connect(module)
    module.trainer = trainer
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit" if split == "train" else "validate")
    loaders = datamodule.train_dataloader() if split == "train" else datamodule.val_dataloader()
    return chain.from_iterable([loaders] if isinstance(loaders, DataLoader) else loaders)
