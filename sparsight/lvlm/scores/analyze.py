"""What the ``analyze`` verb does: calibration batches of a datamodule through a module's scores, into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.calibration import Split, calibration_batches, refuse_processes
from sparsight.lvlm.scores.base import LayerScore
from sparsight.lvlm.scores.change import AngularDistance, BlockInfluence, MultimodalBlockInfluence
from sparsight.lvlm.scores.maps.image_maps import ImageMaps, Mapped
from sparsight.lvlm.scores.table import ScoreTable
from sparsight.publish.checkpoint import load_weights


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
    maps: ImageMaps | None = None,
) -> ScoreTable | None:
    """Score a module's decoder layers, print the table, and write it as JSON, CSV and plot; draw attention on images.

    Args:
        trainer: Says on which device and in which precision.
        module: With a method ``analyze(scores, batches)`` that returns a score table.
        datamodule: Where calibration batches come from.
        scores: What to measure; without any, only maps are drawn.
        batches: How many calibration batches.
        split: Which of the datamodule's splits they are from.
        checkpoint: Take the module's trained weights from here.
        folder: For the files.
        maps: Draw these into the folder ``maps`` beside them.

    Raises:
        ConfigurationError: The module has nothing to analyse or no images to draw, or there are no batches, or several
            processes.
        FileNotFoundError: There is no such checkpoint.
    """
    if not isinstance(module, Analysed):
        raise ConfigurationError(
            f"{type(module).__name__} has no decoder layers to analyse: use lightning_modules.SparseLayerTuning"
        )
    if maps is not None and not isinstance(module, Mapped):
        raise ConfigurationError(f"{type(module).__name__} has no images to draw maps over: leave --maps out")
    refuse_processes(trainer)
    if checkpoint is not None:
        load_weights(module, checkpoint, weights="raw")
    drawn = list(calibration_batches(trainer, module, datamodule, split, batches))
    module.to(trainer.strategy.root_device)
    table = None
    with trainer.precision_plugin.forward_context():
        if scores:
            table = module.analyze(scores, drawn)
            table.write(folder)
            print(table.text())
            print(f"\nscores.json, scores.csv and scores.png are in {folder}")
        if maps is not None:
            assert isinstance(module, Mapped)
            pictures = module.image_maps(maps, drawn, folder / "maps")
            print(f"maps.json and {len(pictures)} maps over images are in {folder / 'maps'}")
    return table
