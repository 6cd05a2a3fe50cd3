"""Training few layers at a time, other ones after a while."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.ddp import check_training_may_change
from sparsight.lvlm.train.trained import LAYERS


@runtime_checkable
class Rotatable(Protocol):
    """A module with chosen decoder layers, of which it can train a few alone."""

    layers: Sequence[int]

    def focus(self, layers: Collection[int]) -> bool:
        """Train these of the chosen layers alone from now on; says whether that changes anything."""
        ...


class LayerRotation(Callback):
    """Trains a few of a module's chosen decoder layers at a time, drawn anew every so many steps: LISA.

    Pan et al., "LISA: Layerwise Importance Sampling", arXiv 2403.17919.

    The optimiser forgets its state of layers that are frozen again, which is what saves the memory; weights keep what
    they have learnt. Choose all layers in the module (``sparsight.lvlm.surgery.selection.All``) to rotate over all.
    The draw depends on (seed, step) alone, so a resumed run goes on with the same layers.

    Args:
        layers: Number of layers that train at a time.
        every_n_steps: Optimiser steps between two draws.
        seed: Of the draws.

    Raises:
        ValueError: An option is not positive.
    """

    def __init__(self, layers: int = 2, every_n_steps: int = 20, seed: int = 0) -> None:
        if layers < 1 or every_n_steps < 1:
            raise ValueError(f"layers and every_n_steps are 1 or more, got {layers} and {every_n_steps}")
        self.layers = layers
        self.every_n_steps = every_n_steps
        self.seed = seed

    @property
    def layers_at_a_time(self) -> int:
        """Number of layers that train at a time, for the estimate of memory."""
        return self.layers

    def shaping(self) -> dict[str, Any]:
        """What must not change on resuming."""
        return {"layers": self.layers, "every_n_steps": self.every_n_steps, "seed": self.seed}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Check that there is something to rotate over.

        Raises:
            ConfigurationError: The module has no layers to choose from, or too few, or the strategy does not allow it.
        """
        if not isinstance(pl_module, Rotatable):
            raise ConfigurationError(f"LayerRotation needs a SparseLayerTuning, not a {type(pl_module).__name__}")
        check_training_may_change(trainer)
        if self.layers > len(pl_module.layers):
            raise ConfigurationError(
                f"LayerRotation trains {self.layers} layers at a time, but only {pl_module.layers} are chosen"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw when it is time, before the step is trained, in stages that train layers."""
        if LAYERS not in pl_module.clock.stages[pl_module.clock.index(trainer.global_step)].train:
            return
        turn = trainer.global_step // self.every_n_steps
        left = [index for index in pl_module.layers if index not in pl_module.retired.indices]
        drawn = random.Random(f"{self.seed} {turn}").sample(left, min(self.layers, len(left)))
        if pl_module.focus(drawn):
            rank_zero_info(f"step {trainer.global_step}: training layers {sorted(drawn)}")
