"""What a score of layers must give: two kinds, one that reads a common forward pass and one that works by itself.

Shape legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores.geometry import Directions
from sparsight.lvlm.scores.tokens import CalibrationSet, TokenKinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LayerScore(ABC):
    """One number for every decoder layer; higher means more important: tune the highest, prune the lowest."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Names the score and what was chosen in it, e.g. ``angular_distance_last``."""

    def details(self) -> dict[str, Any]:
        """Plain data that belongs beside the numbers; read after them."""
        return {}


@dataclass(frozen=True)
class LayerPass:
    """What one layer did to one batch.

    Args:
        layer: Its index, counted from 0.
        entering_BTC: Hidden states that it was given.
        leaving_BTC: Hidden states that it returned: of the last layer, those before the final norm.
    """

    layer: int
    entering_BTC: Tensor
    leaving_BTC: Tensor

    @cached_property
    def turn(self) -> Directions:
        """How far the layer turned each token; computed once for all scores."""
        return Directions.between(self.entering_BTC, self.leaving_BTC)


class StreamingScore(LayerScore):
    """A score that looks on while the calibration set passes through the model once."""

    @abstractmethod
    def start(self, num_layers: int) -> None:
        """Begin anew."""

    def attached(self, parts: Parts) -> AbstractContextManager[None]:
        """Held open during the pass; for scores that need more than ``observe`` is given."""
        return nullcontext()

    @abstractmethod
    def begin(self, tokens: TokenKinds) -> None:
        """A new batch is about to pass."""

    @abstractmethod
    def observe(self, step: LayerPass) -> None:
        """The batch passed one layer; layers come in their order."""

    @abstractmethod
    def values(self) -> list[float | None]:
        """One number a layer; ``None`` where there is nothing to measure."""


class SeparateScore(LayerScore):
    """A score that runs the model in ways of its own, or does not run it at all."""

    @abstractmethod
    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> Sequence[float]:
        """One number a layer.

        Args:
            model: In eval mode, without gradients; is left as it was.
            parts: Its parts.
            batches: Calibration batches, as often as needed.
        """


class SampleMeans:
    """Mean over samples of a mean over the tokens of each, for every layer, in fp32.

    Samples without such tokens do not count. How samples are batched makes no difference.
    """

    def __init__(self, num_layers: int) -> None:
        self.sums = [torch.zeros(())] * num_layers  # they move to the layers' devices; waiting for them would cost time
        self.counts = [torch.zeros(())] * num_layers

    def add(self, layer: int, values_B: Tensor, present_B: Tensor) -> None:
        """Add the samples of a batch that have such tokens."""
        self.sums[layer] = self.sums[layer] + torch.where(present_B, values_B, 0.0).sum()
        self.counts[layer] = self.counts[layer] + present_B.sum()

    def values(self, what: str) -> list[float | None]:
        """Means, one a layer; ``None`` for a layer that was never asked.

        Raises:
            ConfigurationError: No sample counted at all; the message says that ``what`` was missing.
        """
        if not any(self.counts):
            raise ConfigurationError(f"the calibration batches have no {what}")
        pairs = zip(self.sums, self.counts, strict=True)
        return [float(total / count) if count else None for total, count in pairs]


def mean_of(values_BT: Tensor, chosen_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the chosen tokens of each sample (B,), and whether it has any (B,)."""
    count_B = chosen_BT.sum(dim=1)
    return torch.where(chosen_BT, values_BT, 0.0).sum(dim=1) / count_B.clamp(min=1), count_B > 0
