"""What all that stands around a model shares while a recipe works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from blocks.edits.base import AttentionEdit, BranchDecoder, ComparedHeadEdit
from blocks.tokens.base import Edit, FeatureReducer
from sparsight.lvlm.methods.guard import CacheGuard
from sparsight.lvlm.methods.learned.encoder import as_encoder
from sparsight.lvlm.methods.pictures import Pictures
from sparsight.lvlm.model.tower import Parts


class Prompt(NamedTuple):
    """What a prompt's guard is made of once its images are encoded."""

    ids: Tensor
    present: Tensor
    labels: Tensor | None
    shows: bool  # images


class State:
    """Methods, the model's parts, and the pass that is being computed.

    Args:
        methods: In their order.
        model: The model.
        parts: Its parts.
        learns: Whether the model trains, whatever mode it is in.

    Attributes:
        tapped: Layers whose attention is kept for the layer after them.
        stop: A layer at whose attention the pass ends.
        recorded: What heads answer at the last token, by layer, where that is asked for.
        others: What it was in the pass that went before the prompt.
        encoders: Decoder layers that reducers use as an encoder's.
        tables: By what positions of the layer's queries are encoded.
    """

    def __init__(self, methods: Sequence[Edit], model: Any, parts: Parts, *, learns: bool = False) -> None:
        self.methods, self.depth, self.whole = list(methods), len(parts.layers), model
        decoder: Any = parts.decoder
        self.config, self.image_id = decoder.config, parts.image_token_id
        self.heads = self.config.num_attention_heads
        self.layers = list(parts.layers)
        self.layer_of = {module: number for number, layer in enumerate(parts.layers) for module in layer.modules()}
        self.second = {branch: branch.reducer() for branch in self.of(BranchDecoder)}
        self.first = {edit: edit.reducer() for edit in self.of(ComparedHeadEdit)}
        reducers = [*self.of(FeatureReducer), *self.second.values(), *self.first.values()]
        self.encoders = {
            reducer: as_encoder(parts, reducer.encoder_layer, method=type(reducer).__name__)
            for reducer in reducers
            if reducer is not None and reducer.encoder_layer is not None
        }
        looking = [r for r in [*reducers, *self.of(AttentionEdit)] if r is not None and r.tower_layer is not None]
        self.pictures = Pictures(model, parts, looking)
        self.tower_configs = [tower.config for tower in self.pictures.towers]
        self.learns = learns
        self.tapped: set[int] = set()
        self.stop: int | None = None
        self.recorded: dict[int, Tensor] | None = None
        self.others: dict[int, Tensor] = {}
        self.tables: Any = None
        self._guard: CacheGuard | None = None
        self._prompt: Prompt | None = None

    @property
    def kernel(self) -> str:
        """Name of the decoder's attention kernel."""
        return self.config._attn_implementation

    @property
    def training(self) -> bool:
        """Whether the model trains."""
        return self.learns or self.whole.training

    def of(self, kind: type[Any], layer: int | None = None) -> list[Any]:
        """Methods of a kind, at a layer if one is given."""
        found = [method for method in self.methods if isinstance(method, kind)]
        return found if layer is None else [method for method in found if method.at(layer, self.depth)]

    def edits(self, edit: AttentionEdit, layer: int) -> bool:
        """Whether an edit of attention works in a layer now."""
        return edit.at(layer, self.depth) and (self.training or not edit.trains_only)

    @property
    def guard(self) -> CacheGuard:
        """Of the pass that is being computed."""
        assert self._guard is not None
        return self._guard
