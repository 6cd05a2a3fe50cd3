"""In which order layers leave a model of the region study: by scores that are asked again before each, or drawn.

No two of them are neighbours; first and last layer stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.region_arms import COUNT
from lightning_modules.loses_layers import SITE, layer_of
from sparsight.common.training.schedule import spaced
from sparsight.lvlm.scores import AngularDistance, LayerScore, LossIncrease, score_layers
from sparsight.lvlm.surgery.selection import Uniform

DRAWS = 5
DRAWN = "random"
CRITERIA = ("angle", "loss", "region", *(f"{DRAWN}{draw}" for draw in range(DRAWS)))
MOST = 6  # layers
SPACING = 2  # one stays between two that leave


class Sites:
    """Decoder layers that may leave, as a schedule asks for them.

    Args:
        layers: Their numbers.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers

    def sites(self) -> list[str]:
        """Their names."""
        return [f"{SITE}{layer}" for layer in self.layers]

    def distance(self, one: str, other: str) -> int:
        """How many layers two are apart."""
        return abs(layer_of(one) - layer_of(other))


def candidates(criterion: str, depth: int) -> list[int]:
    """Layers that may leave: all but the ends, and for ``region`` none of those evenly spread that an arm tunes."""
    kept = {0, depth - 1} | (set(Uniform(count=COUNT).select(depth)) if criterion == "region" else set())
    return [layer for layer in range(depth) if layer not in kept]


def next_layer(values: Sequence[float], taken: Sequence[int], *, allowed: Sequence[int], most: int) -> int:
    """The layer of lowest value that keeps its distance, and leaves room for those that go after it.

    Args:
        values: Of every layer.
        taken: Layers that left before.
        allowed: Layers that may leave.
        most: How many will have left in the end.
    """
    ranked = sorted((layer for layer in allowed if layer not in taken), key=lambda layer: values[layer])
    order, gone = ([f"{SITE}{layer}" for layer in group] for group in (ranked, taken))
    (name,) = spaced(order, 1, rest=most - len(taken) - 1, taken=gone, spacing=SPACING, module=Sites(allowed))
    return layer_of(name)


def drawn_order(draw: int, depth: int) -> list[int]:
    """Layers in the order of a draw."""
    values = np.random.default_rng(draw).permutation(depth).tolist()
    taken: list[int] = []
    while len(taken) < MOST:
        taken.append(next_layer(values, taken, allowed=candidates(DRAWN, depth), most=MOST))
    return taken


def measured_order(module: Any, criterion: str, batches: Sequence[Mapping[str, Any]]) -> list[int]:
    """Layers in the order in which a score lets them leave a model; all of them are back afterwards.

    Args:
        module: A SparseLayerTuning.
        criterion: ``angle`` or ``region`` (angular distance on all tokens), or ``loss`` (what answers lose).
        batches: Of training questions.
    """
    score: LayerScore = LossIncrease() if criterion == "loss" else AngularDistance(tokens="all")
    taken: list[int] = []
    while len(taken) < MOST:
        module.retired.set(taken)
        (values,) = score_layers(module.model, batches, [score]).values.values()
        known = [float("inf") if value is None else value for value in values]
        taken.append(next_layer(known, taken, allowed=candidates(criterion, module.depth), most=MOST))
    module.retired.set([])
    return taken
