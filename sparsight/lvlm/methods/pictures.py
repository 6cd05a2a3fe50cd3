"""What a model says of images while it encodes them: the layout of their tokens, and one layer of the vision tower.

``generate`` encodes images ahead of the forward pass; both call the same method of the model inside, listened to here.

Shape legend: h heads, N tokens of a crop, S tokens of the tower, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from blocks.tokens.token_map import TokenMap
from sparsight.lvlm.methods.families import family_of
from sparsight.lvlm.model.bypass import replaced_method
from sparsight.lvlm.model.tower import Parts

METHOD = "get_image_features"


class _Seen(NamedTuple):
    query: Tensor  # (h, S, d) of one crop
    key: Tensor
    scaling: float


class Looking(Protocol):
    """A method that looks into the vision tower."""

    tower_layer: int | None


class Pictures:
    """Images of the prompt that is read next.

    Args:
        model: Of ``AutoModelForImageTextToText``.
        parts: Its parts.
        looking: Methods that look into a layer of the tower.

    Attributes:
        layouts: Of each image or tile of the batch, (n, 3).
        again: Whether further passes over the same images follow, which are not encoded again.
    """

    def __init__(self, model: Any, parts: Parts, looking: Sequence[Looking]) -> None:
        self.inner, self.family = model.base_model, family_of(model.config)
        self.layouts: list[Tensor] = []
        self.towers: list[Any] = [tower for tower in parts.vision.values() if looking]
        self.modules = {module for tower in self.towers for module in tower.modules()}
        self.again = False
        self._found: Any = None
        self._seen: dict[nn.Module, list[_Seen]] = {}  # by attention, in the order of layers

    def forget(self) -> None:
        """The prompt was read; the next one has other images."""
        self.layouts, self._seen, self._found, self.again = [], {}, None, False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to the model while it encodes images."""
        encode = self.inner.get_image_features

        @wraps(encode)
        def listen(*args: Any, **given: Any) -> Any:
            if self.again and self._found is not None:
                return self._found
            self._seen = {}
            found = self._found = encode(*args, **given)
            counts = [len(features) for features in found.pooler_output]
            bound = signature(encode).bind(*args, **given).arguments
            self.layouts = self.family.layouts(self.inner, {**bound, **bound.get("kwargs", {})}, counts)
            if [len(layout) for layout in self.layouts] != counts:
                raise ValueError(
                    f"images have {counts} tokens, but {[len(layout) for layout in self.layouts]} are laid out"
                )
            return found

        with replaced_method(self.inner, METHOD, listen):
            yield

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Listen to nothing that the tower reads inside."""
        modules, self.modules = self.modules, set()
        try:
            yield
        finally:
            self.modules = modules

    def heard(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> None:
        """Remember queries and keys of the tower, whose attentions are called crop by crop or for all at once."""
        if module in self.modules:
            crops = zip(query.detach(), key.detach(), strict=True)
            self._seen.setdefault(module, []).extend(_Seen(*crop, scaling) for crop in crops)

    def looking(
        self, method: Looking, tokens: TokenMap, first: int | None = None
    ) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """A function that gives attention (n, h, N) and keys (h, N, d) of tokens of a sample, which are one crop.

        Args:
            method: Says in which layer.
            tokens: Of the batch.
            first: The first of several layers, up to that; the keys are those of the last.

        Raises:
            ValueError: The tower does not have the layer, or no whole number of patches for each token of an image.
        """
        name, layer, layers = type(method).__name__, method.tower_layer, list(self._seen.values())
        assert layer is not None
        if not -len(layers) <= layer < len(layers):
            had = f"{len(layers)} layers with attention" if layers else "no attention that can be seen"
            raise ValueError(
                f"{name} looks into layer {layer} of the vision tower, which had {had}: a tower of convolutions has "
                "none, and a vision cache passes it by"
            )
        last = layer % len(layers)
        wanted = layers[(last if first is None else first % len(layers)) : last + 1]
        firsts = [int((layout[:, 0] == 0).sum()) for layout in self.layouts]
        crops = [int(layout[:, 0].max()) + 1 for layout in self.layouts]
        lengths = [len(seen.key[0]) for seen in layers[last]]
        counts = [first for first, crop in zip(firsts, crops, strict=True) for _ in range(crop)]
        if len(lengths) != len(counts) or not all(map(self._patches, lengths, counts)) or not wanted:
            raise ValueError(
                f"{name} needs patches of the vision tower for each image token; here the tower computes "
                f"{len(lengths)} x {sorted(set(lengths))} for {len(counts)} crops of {sorted(set(firsts))} tokens"
            )
        begins = torch.tensor([0, *crops]).cumsum(0).tolist()
        entry = torch.repeat_interleave(torch.arange(len(crops)), torch.tensor([len(x) for x in self.layouts]))
        number = torch.full_like(tokens.image, -1)
        number[tokens.image >= 0] = entry.to(number)

        def look(sample: int, places: Tensor) -> tuple[Tensor, Tensor]:
            picture = int(number[sample, places[0]])
            inside = 0 if self.family.tiles else int(tokens.crop[sample, places[0]])  # tiles are entries of their own
            crop, count = begins[picture] + inside, firsts[picture]
            told = [self._of_tokens(seen[crop], count) for seen in wanted]
            side = math.isqrt(count)
            if self.family.patches == "run":
                columns = int(self.layouts[picture][:, 2].max()) + 1
                at = tokens.row[sample, places] * columns + tokens.column[sample, places]
            else:
                at = tokens.row[sample, places] % side * side + tokens.column[sample, places] % side
            return torch.stack([attention for attention, _ in told])[..., at], told[-1][1][:, at]

        return look

    def _patches(self, length: int, count: int) -> int:
        """How many patches on a side, or in a run, a token stands for; 0 if that is not known."""
        if self.family.patches == "run":
            return 0 if length % count else length // count
        side, tokens = math.isqrt(length), math.isqrt(count)
        fits = length - side * side in (0, 1) and tokens * tokens == count and side % max(tokens, 1) == 0
        return side // tokens if fits and tokens and self.family.patches == "square" else 0

    def _of_tokens(self, seen: _Seen, count: int) -> tuple[Tensor, Tensor]:
        """Attention (h, N) and keys (h, N, d) of a crop's tokens, each of which stands for some patches."""
        length = seen.key.shape[1]
        patches, runs = self._patches(length, count), self.family.patches == "run"
        skip = 0 if runs else length - math.isqrt(length) ** 2  # a class token, or none
        queries = seen.query[:, :1] if skip else seen.query
        logits = queries.float() @ seen.key.float().transpose(1, 2) * seen.scaling
        weights, keys = logits.softmax(-1).mean(1)[:, skip:], seen.key[:, skip:]
        if runs:
            return weights.unflatten(1, (count, patches)).sum(2), keys.unflatten(1, (count, patches)).mean(2)
        side = math.isqrt(count)
        cells = (side, patches, side, patches)
        grid, pooled = weights.unflatten(1, cells).sum((2, 4)), keys.unflatten(1, cells).mean((2, 4))
        return grid.flatten(1), pooled.flatten(1, 2)
