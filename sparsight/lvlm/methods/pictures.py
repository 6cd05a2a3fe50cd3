"""What a model says of images while it encodes them: the layout of their tokens, and one layer of the vision tower.

``generate`` encodes images ahead of the forward pass; both call the same method of the model inside, listened to here.

Shape legend: h heads, N tokens of a crop, S tokens of the tower, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blocks.tokens.base import FeatureReducer
from blocks.tokens.token_map import TokenMap
from sparsight.lvlm.methods.families import family_of
from sparsight.lvlm.model.tower import Parts

METHOD = "get_image_features"


class _Seen(NamedTuple):
    query: Tensor  # (crops, h, S, d)
    key: Tensor
    scaling: float


class Pictures:
    """Images of the prompt that is read next.

    Args:
        model: Of ``AutoModelForImageTextToText``.
        parts: Its parts.
        reducers: Which may look into a layer of the tower.

    Attributes:
        layouts: Of each image or tile of the batch, (n, 3).
    """

    def __init__(self, model: Any, parts: Parts, reducers: list[FeatureReducer]) -> None:
        self.inner, self.family = model.base_model, family_of(model.config)
        self.layouts: list[Tensor] = []
        self.towers: list[Any] = [tower for tower in parts.vision.values() if reducers]
        self.modules = {module for tower in self.towers for module in tower.modules()}
        self.wanted = {reducer.tower_layer for reducer in reducers if reducer.tower_layer is not None}
        self._calls = 0
        self._seen: dict[int, _Seen] = {}

    def forget(self) -> None:
        """The prompt was read; the next one has other images."""
        self.layouts, self._seen = [], {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to the model while it encodes images."""
        own = vars(self.inner).get(METHOD)
        encode = self.inner.get_image_features

        @wraps(encode)
        def listen(*args: Any, **given: Any) -> Any:
            self._calls, self._seen = 0, {}
            found = encode(*args, **given)
            counts = [len(features) for features in found.pooler_output]
            bound = signature(encode).bind(*args, **given).arguments
            self.layouts = self.family.layouts(self.inner, {**bound, **bound.get("kwargs", {})}, counts)
            if [len(layout) for layout in self.layouts] != counts:
                raise ValueError(
                    f"images have {counts} tokens, but {[len(layout) for layout in self.layouts]} are laid out"
                )
            return found

        vars(self.inner)[METHOD] = listen
        try:
            yield
        finally:
            if own is None:
                del vars(self.inner)[METHOD]
            else:
                vars(self.inner)[METHOD] = own

    def heard(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> None:
        """Remember queries and keys of the wanted layers; attention modules are called one layer after the other."""
        if module not in self.modules:
            return
        depth = self.towers[0].config.num_hidden_layers
        if self._calls in {layer % depth for layer in self.wanted if -depth <= layer < depth}:
            self._seen[self._calls] = _Seen(query.detach(), key.detach(), scaling)
        self._calls += 1

    def looking(self, reducer: FeatureReducer, tokens: TokenMap) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """A function that gives attention (h, N) and keys (h, N, d) of tokens of a sample, which are one crop.

        Raises:
            ValueError: The tower does not have the layer, or not a patch for each token of an image.
        """
        name, layer = type(reducer).__name__, reducer.tower_layer
        assert layer is not None
        seen = self._seen.get(layer % max(self._calls, 1)) if -self._calls <= layer < self._calls else None
        if seen is None:
            had = f"{self._calls} layers with attention" if self._calls else "no attention that can be seen"
            raise ValueError(
                f"{name} looks into layer {layer} of the vision tower, which had {had}: a tower of convolutions has "
                "none, and a vision cache passes it by"
            )
        firsts = [int((layout[:, 0] == 0).sum()) for layout in self.layouts]
        crops = [int(layout[:, 0].max()) + 1 for layout in self.layouts]
        length = seen.key.shape[2]
        side = math.isqrt(length)
        skip = length - side * side  # a class token, or none
        if len(seen.key) != sum(crops) or skip not in (0, 1) or any(first != side * side for first in firsts):
            raise ValueError(
                f"{name} needs a patch of the vision tower for each image token; here the tower computes "
                f"{len(seen.key)} x {length} for {sum(crops)} crops of {sorted(set(firsts))} tokens"
            )
        begins = torch.tensor([0, *crops]).cumsum(0).tolist()
        entry = torch.repeat_interleave(torch.arange(len(crops)), torch.tensor([len(x) for x in self.layouts]))
        number = torch.full_like(tokens.image, -1)
        number[tokens.image >= 0] = entry.to(number)

        def look(sample: int, places: Tensor) -> tuple[Tensor, Tensor]:
            first = places[0]
            inside = 0 if self.family.tiles else int(tokens.crop[sample, first])  # tiles are entries of their own
            crop = begins[int(number[sample, first])] + inside
            patch = skip + tokens.row[sample, places] % side * side + tokens.column[sample, places] % side
            queries = seen.query[crop, :, :1] if skip else seen.query[crop]
            logits = queries.float() @ seen.key[crop].float().transpose(1, 2) * seen.scaling
            return logits.softmax(-1).mean(1)[:, patch], seen.key[crop][:, patch]

        return look
