"""Scores by what the loss on the answers becomes when layers are retired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores.base import SeparateScore
from sparsight.lvlm.scores.replay import Replay
from sparsight.lvlm.scores.tokens import CalibrationBatch, CalibrationSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LossIncrease(SeparateScore):
    """Negative log-likelihood of the answers, in nats a token, with the layer off minus that of the whole model.

    One whole forward pass a batch, then one for each layer, which begins at that layer.
    """

    name = "loss_increase"

    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> list[float]:
        """See the class.

        Raises:
            ConfigurationError: The batches have no answers.
        """
        whole, without = losses_without(model, parts, batches, range(len(parts.layers)))
        return [loss - whole for loss in without]


class GreedyLossIncrease(SeparateScore):
    """Order in which SLEB (Song et al., arXiv 2402.09025) removes layers: again and again the one that is missed least.

    A layer's number is the round in which it went, from 0; those that stay share the next one, so that the ``remove``
    lowest are the removed ones. Each round costs as much as ``LossIncrease`` for the layers that are left.

    Args:
        remove: Number of layers to remove.
        protected: Layers that stay, counted from 0, or from the end if negative.
    """

    def __init__(self, remove: int, protected: Sequence[int] = (0, -1)) -> None:
        if remove < 1:
            raise ValueError(f"remove is a number of layers from 1; got {remove}")
        self.remove = remove
        self.protected = tuple(protected)
        self.order: list[int] = []
        self.losses: list[float] = []

    name = "greedy_loss_increase"

    def details(self) -> dict[str, Any]:
        """Layers in the order of their removal, and the loss before the first and after each removal."""
        return {"removal_order": self.order, "losses": self.losses}

    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> list[float]:
        """See the class.

        Raises:
            ConfigurationError: The batches have no answers, a protected layer does not exist, or too few may go.
        """
        alive = self._candidates(len(parts.layers))
        self.order, self.losses = [], []
        for _ in range(self.remove):
            whole, without = losses_without(model, parts, batches, alive, removed=self.order)
            least = min(range(len(alive)), key=without.__getitem__)
            self.losses = [*(self.losses or [whole]), without[least]]
            self.order.append(alive.pop(least))
        return [
            float(self.order.index(layer)) if layer in self.order else float(self.remove)
            for layer in range(len(parts.layers))
        ]

    def _candidates(self, num_layers: int) -> list[int]:
        unknown = [layer for layer in self.protected if not -num_layers <= layer < num_layers]
        if unknown:
            raise ConfigurationError(f"protected layers {unknown} do not exist: the decoder has {num_layers}")
        kept = {layer % num_layers for layer in self.protected}
        if self.remove > num_layers - len(kept):
            raise ConfigurationError(f"{self.remove} layers cannot go: {len(kept)} of {num_layers} are protected")
        return [layer for layer in range(num_layers) if layer not in kept]


def losses_without(
    model: PreTrainedModel,
    parts: Parts,
    batches: CalibrationSet,
    candidates: Sequence[int],
    *,
    removed: Iterable[int] = (),
) -> tuple[float, list[float]]:
    """Mean loss of all answer tokens: of the model as it is, and with each candidate retired besides.

    Args:
        model: In eval mode, without gradients.
        parts: Its parts.
        batches: With labels.
        candidates: Layers, each of which is retired alone.
        removed: Layers that are off all the time.

    Raises:
        ConfigurationError: The batches have no answers.
    """
    totals = torch.zeros(1 + len(candidates), dtype=torch.float64)
    count = 0
    with bypassed(parts.layers, removed):
        for batch in batches:

            def loss(batch: CalibrationBatch = batch) -> Tensor:
                return answer_losses(model, batch.inputs, _labels(batch))[0]

            first, others = with_each_changed(parts, candidates, loss, lambda layer: bypassed(parts.layers, [layer]))
            totals += torch.stack([losses_N.sum().cpu().double() for losses_N in [first, *others]])
            count += len(first)
    if not count:
        raise ConfigurationError("the calibration batches have no labelled answers to measure a loss on")
    whole, *without = (totals / count).tolist()
    return whole, without


def with_each_changed(
    parts: Parts,
    layers: Sequence[int],
    run: Callable[[], Tensor],
    changed: Callable[[int], AbstractContextManager[None]],
) -> tuple[Tensor, list[Tensor]]:
    """What a forward pass returns as it is, and with each layer changed in turn.

    Images are encoded once, and passes begin at the changed layer: what lies before returns what it did.

    Args:
        parts: Parts of the model.
        layers: Layers to change.
        run: The forward pass, always on the same inputs.
        changed: Held open while a layer is changed.
    """
    recording = Replay([*parts.vision.values(), *parts.layers])
    with recording.record():
        whole = run()
    others = []
    for layer in layers:
        with recording.replay([*parts.vision.values(), *parts.layers[:layer]]), changed(layer):
            others.append(run())
    return whole, others


def _labels(batch: CalibrationBatch) -> Tensor:
    if batch.labels_BT is None:
        raise ConfigurationError("a loss needs calibration batches with labels; batches of prompts alone have none")
    return batch.labels_BT
