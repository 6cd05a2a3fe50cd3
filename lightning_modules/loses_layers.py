"""Decoder layers that leave an image-text model while it trains: see ``callbacks.PruningSchedule``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lightning_modules.answering import Answering
from sparsight.common.datamodule import datamodule_of
from sparsight.common.training.processes import averaged, everywhere
from sparsight.lvlm.scores import score_layers
from sparsight.lvlm.surgery.layer_record import write_layers
from sparsight.lvlm.surgery.retire import LayerPruning, RetiredLayers, measurement, removable_layers

SITE = "layers."  # names of decoder layers as sites of a schedule


class LosesLayers(Answering):
    """Base of image-text models.

    Attributes:
        prune: Which layers may be removed; none if not given.
        retired: Layers that are passed by.
        removals: Steps at which layers left, in order, each with its layers and the numbers they were chosen by.
        tuned_layers: Decoder layers that any stage tunes.
        earlier: What runs before this one did to the base.
        depth: How many layers the base has.
    """

    prune: LayerPruning | None
    retired: RetiredLayers
    removals: list[dict[str, Any]]
    tuned_layers: list[int]
    earlier: dict[str, Any] | None
    depth: int
    _measured: dict[str, Any] | None = None  # what the next removal is chosen by

    def sites(self) -> list[str]:
        """Names of the decoder layers that may be removed.

        Raises:
            ValueError: The module is not set up to lose layers.
        """
        if self.prune is None:
            raise ValueError("the module has no `prune`: give it, with a score, to let a schedule remove layers")
        tuned_before = [] if self.earlier is None else self.earlier["tuned_layers_now"]
        found = removable_layers(
            self.model, self.prune, depth=self.depth, tuned=self.tuned_layers, tuned_before=tuned_before
        )
        return [f"{SITE}{index}" for index in found]

    def score(self) -> dict[str, float]:
        """Importance of every removable layer, as the model now is, on the first training batches of all processes."""
        assert self.prune is not None
        drawn = islice(iter(datamodule_of(self.trainer).train_dataloader()), self.prune.batches)
        batches = [self.trainer.strategy.batch_to_device(batch) for batch in drawn]
        with self.trainer.precision_plugin.forward_context():
            table = score_layers(self.model, batches, [self.prune.score])
        (values,) = table.values.values()
        known = torch.tensor([float("inf") if value is None else value for value in values], device=self.device)
        mean = averaged(known).tolist()
        self._measured = measurement(self.prune.score.name, mean, everywhere(table.facts))
        return {name: mean[layer_of(name)] for name in self.sites()}

    def distance(self, one: str, other: str) -> int:
        """How many layers two sites are apart."""
        return abs(layer_of(one) - layer_of(other))

    def retire(self, names: Sequence[str]) -> None:
        """Pass these layers by, and remember by which numbers those that are new among them were chosen."""
        layers = [layer_of(name) for name in names]
        leaving = [layer for layer in layers if layer not in self.retired.indices]
        if leaving:
            self.removals.append({"step": self.global_step, "layers": leaving, "measured": self._measured})
            self._measured = None
            self._keep_layers()
        self.retired.set(layers)

    def on_train_start(self) -> None:
        """Keep beside the run which layers are tuned, and which have left."""
        super().on_train_start()
        self._keep_layers()

    def _keep_layers(self) -> None:
        """For the page of the run; all processes must ask, and of a dry run nothing is kept."""
        trainer = self.trainer
        folder = trainer.log_dir  # a broadcast
        if folder and trainer.logger and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_layers(Path(folder), depth=self.depth, tuned=self.tuned_layers, removals=self.removals)


def layer_of(site: str) -> int:
    """Number of the decoder layer that a site's name means."""
    return int(site.removeprefix(SITE))
