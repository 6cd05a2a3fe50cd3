"""What optimiser steps have changed so far: parts, and decoder layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from sparsight.common.training.stage_clock import StageClock
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LAYERS, Part


class Learned:
    """Parts and layers that optimiser steps were taken on.

    Attributes:
        parts: Those parts.
        layers: Those decoder layers.
    """

    def __init__(self) -> None:
        self.parts: set[Part] = set()
        self.layers: set[int] = set()

    def note(self, optimizer: torch.optim.Optimizer, *, layers: Collection[int]) -> None:
        """Note a step of an optimiser whose groups are named by parts; where the learning rate is 0 nothing learns.

        Args:
            optimizer: It.
            layers: Decoder layers that learn where that part does.
        """
        parts = {group["name"] for group in optimizer.param_groups if group["lr"] > 0}
        self.parts |= parts
        if LAYERS in parts:
            self.layers |= set(layers)

    def record(self, order: Sequence[Part]) -> dict[str, Any]:
        """As plain data, parts in an order."""
        return {"parts": [part for part in order if part in self.parts], "layers": sorted(self.layers)}

    def take(self, record: Mapping[str, Any]) -> None:
        """Go on from a record."""
        self.parts, self.layers = set(record["parts"]), set(record["layers"])


def learned_by_plan(clock: StageClock[TuningStage], steps: int, *, layers: Sequence[int]) -> dict[str, Any]:
    """What stages and steps say of a checkpoint of an earlier version, which has no record.

    Args:
        clock: The stages.
        steps: Optimiser steps that were taken.
        layers: Chosen decoder layers.
    """
    done = zip(clock.stages, clock.done(steps), strict=True)
    parts = {part for stage, taken in done if taken > 0 for part in stage.train}
    return {"parts": parts, "layers": layers if LAYERS in parts else []}
