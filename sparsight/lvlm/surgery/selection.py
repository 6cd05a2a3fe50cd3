"""Which decoder layers are tuned, kept or pruned: rules that give sorted indices, counted from 0.

The published lists and the rules behind the names are those of "Activating Distributed Visual Region within LLMs for
Efficient and Effective Vision-Language Training and Inference" (arXiv 2412.12785) and the works it compares with.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from sparsight.common.errors import need_kind, require
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores.table import ScoreTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUARTER = 0.25  # of the layers, which the paper finds to be enough
Rule = Literal["floor", "linspace", "stride_end", "midpoint"]
Place = Literal["bottom", "lower_middle", "upper_middle", "top"]
PRESETS = {
    "visual_region_code": (1, 5, 9, 13, 19, 23, 27, 31),  # default of the released training script
    "visual_region_paper": (0, 4, 8, 12, 18, 22, 26, 30),  # as reported from the paper's comparison of strategies
}
PRESET_DEPTH = 32


class LayerSelection(ABC):
    """A rule that names decoder layers of a model of any depth."""

    def select(self, num_layers: int) -> list[int]:
        """Sorted indices, counted from 0, of the chosen layers.

        Args:
            num_layers: Depth of the decoder.

        Raises:
            ValueError: The rule names a layer twice, one that does not exist, or none, or does not fit this depth.
        """
        chosen = [*self.choose(num_layers)]
        odd = [layer for layer in chosen if type(layer) is not int]
        if odd:
            raise ValueError(f"{type(self).__name__} names layer {odd[0]!r}; layers are whole numbers, counted from 0")
        chosen.sort()
        outside = [layer for layer in chosen if not 0 <= layer < num_layers]
        if outside:
            raise ValueError(
                f"{type(self).__name__} names layers {outside}, but the decoder has {num_layers}: 0 to {num_layers - 1}"
            )
        repeated = sorted({layer for layer in chosen if chosen.count(layer) > 1})
        if repeated:
            raise ValueError(f"{type(self).__name__} names layers {repeated} more than once")
        if not chosen:
            raise ValueError(f"{type(self).__name__} names no layer")
        return chosen

    @abstractmethod
    def choose(self, num_layers: int) -> Sequence[int]:
        """The chosen layers in any order; ``select`` checks them."""

    def record(self) -> dict[str, Any]:
        """The rule and its options as plain data, for the record of where a model comes from."""
        return {"rule": type(self).__name__, "options": json.loads(json.dumps(vars(self), default=str))}


class CountedSelection(LayerSelection):
    """A rule that chooses a number of layers.

    Args:
        count: How many layers; give this or ``ratio``.
        ratio: Share of the layers, above 0 up to 1, rounded to the nearest number of layers, halves up, at least one:
            0.25 of 30 layers are 8.
    """

    def __init__(self, count: int | None = None, ratio: float | None = None) -> None:
        if (count is None) == (ratio is None):
            raise ValueError(f"give either count or ratio; got count {count} and ratio {ratio}")
        if count is not None and count < 1:
            raise ValueError(f"count is a number of layers from 1; got {count}")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"ratio is a share of the layers above 0 up to 1; got {ratio}")
        self.count = count
        self.ratio = ratio

    def resolve(self, num_layers: int) -> int:
        """Number of layers to choose from so many.

        Raises:
            ValueError: There are fewer than asked for.
        """
        if self.ratio is not None:
            exact = Decimal(str(self.ratio)) * num_layers
            return max(1, int(exact.to_integral_value(ROUND_HALF_UP)))
        assert self.count is not None
        if self.count > num_layers:
            raise ValueError(f"count is {self.count}, but the decoder has {num_layers} layers")
        return self.count


class Uniform(CountedSelection):
    """Layers spread evenly over the depth; k of L layers, i from 0 to k - 1.

    Args:
        count: How many layers; give this or ``ratio``.
        ratio: Share of the layers; halves of a layer count as one.
        rule: ``floor``: i L / k rounded down. ``linspace``: i (L - 1) / (k - 1) rounded to the nearest, halves up, so
            that first and last layer are in. ``stride_end``: the last layer of each of k strides. ``midpoint``: their
            middle, (i + 1/2) L / k rounded down.
        offset: Added to every index.
    """

    def __init__(
        self, count: int | None = None, ratio: float | None = None, rule: Rule = "floor", offset: int = 0
    ) -> None:
        super().__init__(count, ratio)
        if rule not in get_args(Rule):
            raise ValueError(f"rule is one of {', '.join(get_args(Rule))}; got {rule!r}")
        self.rule = rule
        self.offset = offset

    def choose(self, num_layers: int) -> list[int]:
        """See the class."""
        k, depth = self.resolve(num_layers), num_layers
        spread = {
            "floor": [i * depth // k for i in range(k)],
            "linspace": [(2 * i * (depth - 1) + (k - 1)) // (2 * max(1, k - 1)) for i in range(k)],
            "stride_end": [(i + 1) * depth // k - 1 for i in range(k)],
            "midpoint": [(2 * i + 1) * depth // (2 * k) for i in range(k)],
        }
        return [layer + self.offset for layer in spread[self.rule]]


class Preset(LayerSelection):
    """A published list of 8 out of 32 layers.

    Args:
        name: ``visual_region_code``: 1, 5, 9, 13, 19, 23, 27, 31, the default of the released training script.
            ``visual_region_paper``: 0, 4, 8, 12, 18, 22, 26, 30, as reported from the paper.
    """

    def __init__(self, name: str) -> None:
        if name not in PRESETS:
            raise ValueError(f"name is one of {', '.join(PRESETS)}; got {name!r}")
        self.name = name

    def choose(self, num_layers: int) -> Sequence[int]:
        """See the class."""
        if num_layers != PRESET_DEPTH:
            raise ValueError(
                f"preset {self.name} was published for {PRESET_DEPTH} layers and the decoder has {num_layers}: "
                "use Uniform with ratio 0.25"
            )
        return PRESETS[self.name]


class Consecutive(CountedSelection):
    """One block of neighbouring layers.

    Args:
        place: ``bottom`` begins at the first layer, ``top`` ends at the last; ``lower_middle`` ends and
            ``upper_middle`` begins at the middle of the decoder (L / 2 rounded down).
        count: How many layers; give this or ``ratio``.
        ratio: Share of the layers; halves of a layer count as one.
    """

    def __init__(self, place: Place, count: int | None = None, ratio: float | None = None) -> None:
        super().__init__(count, ratio)
        if place not in get_args(Place):
            raise ValueError(f"place is one of {', '.join(get_args(Place))}; got {place!r}")
        self.place = place

    def choose(self, num_layers: int) -> Sequence[int]:
        """See the class."""
        k, middle = self.resolve(num_layers), num_layers // 2
        first = {"bottom": 0, "lower_middle": middle - k, "upper_middle": middle, "top": num_layers - k}[self.place]
        if first < 0 or first + k > num_layers:
            raise ValueError(f"{k} layers do not fit into the {self.place} half of {num_layers}")
        return range(first, first + k)


class Hybrid(LayerSelection):
    """A block at the bottom and one at the top.

    Args:
        bottom: Number of first layers.
        top: Number of last layers.
    """

    def __init__(self, bottom: int, top: int) -> None:
        if bottom < 1 or top < 1:
            raise ValueError(f"bottom and top are numbers of layers from 1; got {bottom} and {top}")
        self.bottom = bottom
        self.top = top

    def choose(self, num_layers: int) -> list[int]:
        """See the class."""
        if self.bottom + self.top > num_layers:
            raise ValueError(f"bottom {self.bottom} and top {self.top} overlap in a decoder of {num_layers} layers")
        return [*range(self.bottom), *range(num_layers - self.top, num_layers)]


class Random(CountedSelection):
    """Layers drawn without replacement; the same ones for equal seed, depth and number.

    Args:
        count: How many layers; give this or ``ratio``.
        ratio: Share of the layers; halves of a layer count as one.
        seed: Seed of the draw.
    """

    def __init__(self, count: int | None = None, ratio: float | None = None, seed: int = 0) -> None:
        super().__init__(count, ratio)
        self.seed = seed

    def choose(self, num_layers: int) -> list[int]:
        """See the class."""
        return random.Random(self.seed).sample(range(num_layers), self.resolve(num_layers))


class Explicit(LayerSelection):
    """Layers by number.

    Args:
        layers: Indices, counted from 0.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        need_kind("layers", layers, Collection, "a list of layers, such as [0, 8, 16]")
        self.layers = list(layers)

    def choose(self, num_layers: int) -> list[int]:
        """See the class."""
        return self.layers


class All(LayerSelection):
    """Every layer."""

    def choose(self, num_layers: int) -> Sequence[int]:
        """See the class."""
        return range(num_layers)


class TopK(CountedSelection):
    """The layers that a score of ``sparsight analyze`` puts first; among equal ones the lower come first.

    Args:
        scores: JSON file of the scores.
        score: Name of the score in that file.
        count: How many layers; give this or ``ratio``.
        ratio: Share of the layers; halves of a layer count as one.
        highest: Choose the highest values, which are the most important layers; the lowest otherwise.
    """

    def __init__(
        self, scores: str, score: str, count: int | None = None, ratio: float | None = None, highest: bool = True
    ) -> None:
        super().__init__(count, ratio)
        self.scores = scores
        self.score = score
        self.highest = highest

    def choose(self, num_layers: int) -> list[int]:
        """See the class."""
        known = ScoreTable.load(Path(self.scores)).values_of(self.score)
        source = f"{self.score} in {self.scores}"
        if len(known) != num_layers:
            raise ValueError(f"{source} scores {len(known)} layers, but the decoder has {num_layers}")
        values = {layer: value for layer, value in enumerate(known) if value is not None}
        if len(values) < num_layers:
            raise ValueError(f"{source} has no number for layers {sorted(set(range(num_layers)) - set(values))}")
        sign = -1 if self.highest else 1
        return sorted(values, key=lambda layer: (sign * values[layer], layer))[: self.resolve(num_layers)]

    def record(self) -> dict[str, Any]:
        """See the class; with the numbers, and what they were measured on."""
        table = ScoreTable.load(Path(self.scores))
        known = super().record()
        known["options"]["scores"] = Path(self.scores).name
        measured = {key: table.facts.get(key) for key in ("samples", "data_sha256")}
        return {**known, "measured": {"score": self.score, "values": table.values_of(self.score), **measured}}


def select_layers(model: PreTrainedModel | int, rule: LayerSelection | None = None) -> list[int]:
    """Decoder layers that a rule names, sorted and counted from 0.

    Args:
        model: An image-text model, or the depth of its decoder.
        rule: Which; a uniform quarter if not given.

    Raises:
        ValueError: The rule does not fit this depth, or the model's decoder cannot be found.
    """
    need_kind("model", model, (nn.Module, int), "an image-text model, as sparsight.load_lvlm gives it, or a number")
    require(not isinstance(model, int) or model >= 1, "model", model, "a depth of 1 or more, or an image-text model")
    depth = model if isinstance(model, int) else len(find_parts(model).layers)
    return need_rule(rule or Uniform(ratio=QUARTER)).select(depth)


def need_rule(rule: LayerSelection) -> LayerSelection:
    """The rule, if it is one.

    Raises:
        ConfigurationError: It is something else, such as a name or numbers.
    """
    asked = "a rule of sparsight.lvlm.surgery.selection, such as Uniform(ratio=0.25) or Explicit([0, 4])"
    need_kind("layers", rule, LayerSelection, asked)
    return rule
