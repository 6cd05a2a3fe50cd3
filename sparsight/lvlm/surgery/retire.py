"""Decoder layers that have left a model that still trains: passed by, and taken out for evaluation.

Training calls pass retired layers by, which keeps names of parameters, checkpoints and processes in step. Generation
needs a cache without gaps: for that the layers are really taken out, and put back afterwards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores import AngularDistance, GreedyLossIncrease, LayerScore
from sparsight.lvlm.surgery.remove import attention_layers, check_removable, remove_layers, text_configs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LayerPruning:
    """Which decoder layers may be removed, and by what they are chosen.

    Args:
        score: Higher means more important; the lowest go first. Asked of PruningSchedule with ``order: score``.
        protect_tuned: Keep the layers that this run tunes, and those that an earlier run tuned according to the
            model's ``sparsight.json``.
        protect_ends: Keep the first and the last layer.
        protected: Further layers to keep.
        batches: Training batches that the score is measured on.

    Raises:
        ValueError: The score orders layers by itself and does not know which may go, or it is one of blocks.
    """

    score: LayerScore
    protect_tuned: bool = True
    protect_ends: bool = True
    protected: Sequence[int] = ()
    batches: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.score, GreedyLossIncrease):
            raise ValueError(
                "prune.score: GreedyLossIncrease removes layers by itself, those too that are protected or gone; the "
                "same greedy removal is LossIncrease here with `rescore: true` in PruningSchedule"
            )
        if isinstance(self.score, AngularDistance) and self.score.window > 1:
            raise ValueError(
                f"prune.score: AngularDistance with window {self.score.window} is about blocks, layers leave singly: "
                "set window to 1; or let `sparsight analyze` score the blocks, and name the layers of the lowest "
                "in PruningSchedule's order"
            )


def removable_layers(
    model: PreTrainedModel, pruning: LayerPruning, *, depth: int, tuned: Collection[int], tuned_before: Collection[int]
) -> list[int]:
    """Layers that may be removed.

    Raises:
        ValueError: None may, or a protected layer is not there.
    """
    kept = set(pruning.protected)
    if not kept <= set(range(depth)):
        raise ValueError(f"prune.protected names layers {sorted(kept)}, but there are 0 to {depth - 1}")
    kept |= {*tuned, *tuned_before} if pruning.protect_tuned else set()
    kept |= {0, depth - 1} if pruning.protect_ends else set()
    kept |= _last_attention(model, depth, kept)
    found = []
    for layer in sorted(set(range(depth)) - kept):
        try:
            check_removable(model, [layer], depth=depth)
            found.append(layer)
        except ValueError as error:
            reason = error
    if not found and len(kept) < depth:
        raise ValueError(f"no layer can be removed: {reason}")
    if not found:
        raise ValueError(f"all {depth} layers are protected, so none can be removed: tune fewer, or protect less")
    return found


def _last_attention(model: PreTrainedModel, depth: int, kept: Collection[int]) -> set[int]:
    """The last layer with attention among layers of other kinds, unless another such layer is kept anyway."""
    attending = attention_layers(model.config.get_text_config(decoder=True), depth)
    if not attending or set(attending) & set(kept):
        return set()
    rank_zero_info(f"prune keeps layer {attending[-1]} too: without attention in any layer no cache can be used")
    return {attending[-1]}


def measurement(score: str, values: Sequence[float], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What layers were chosen by, as plain data.

    Args:
        score: Its name.
        values: One for every layer, retired ones too; means over processes.
        facts: Of the score table of every process.
    """
    return {
        "score": score,
        "values": [value if math.isfinite(value) else None for value in values],
        "samples": sum(found["samples"] for found in facts),
        "data_sha256": [found["data_sha256"] for found in facts],
    }


class RetiredLayers:
    """The retired layers of a model.

    Args:
        model: An image-text model.
        parts: Its parts.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts) -> None:
        self.model, self.parts = model, parts
        self.layers = list(parts.layers)
        self.parent, _, self.name = parts.layers_name.rpartition(".")
        self.indices: list[int] = []
        self._off = ExitStack()

    def set(self, indices: Collection[int]) -> None:
        """Pass exactly these layers by."""
        self.indices = sorted(indices)
        self._off.close()
        self._off.enter_context(bypassed(self.layers, self.indices))

    @contextmanager
    def taken_out(self) -> Iterator[None]:
        """The model without its retired layers, for calls with a cache."""
        if not self.indices:
            yield
            return
        before = [(config, copy.deepcopy(vars(config))) for config in text_configs(self.model, self.parts)]
        whole = self.model.get_submodule(self.parts.layers_name)
        remove_layers(self.model, self.indices)
        try:
            yield
        finally:
            setattr(self.model.get_submodule(self.parent), self.name, whole)
            for config, options in before:
                vars(config).update(options)
            for index, layer in enumerate(self.layers):
                for module in layer.modules():
                    if "layer_idx" in vars(module):
                        vars(module)["layer_idx"] = index
