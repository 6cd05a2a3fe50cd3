"""How attention falls on image tokens in chosen layers, with or without a recipe at work.

Shape legend: B samples, Q queries, K keys, T tokens, R, C rows and columns of a panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from blocks.edits.base import AttentionEdit, BranchDecoder, Rows
from blocks.tokens.attending import Attending
from blocks.tokens.base import Edit
from blocks.tokens.token_map import ANSWER, TokenMap
from sparsight.common.errors import ConfigurationError
from sparsight.common.plain import setting
from sparsight.lvlm.methods.guard import RECURRENT
from sparsight.lvlm.methods.pictures import Pictures
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.methods.spans import present_tokens, read_tokens
from sparsight.lvlm.model.answer_losses import IGNORED
from sparsight.lvlm.model.tower import Parts, find_parts
from sparsight.lvlm.scores.maps.panels import Panel, panels_of
from sparsight.lvlm.scores.maps.pixels import seen_images
from sparsight.lvlm.scores.run import in_eval_mode
from sparsight.lvlm.scores.tokens import CalibrationBatch, CalibrationSet

Asks = Literal["answer", "last"]
USUAL = 4  # layers, where none are named


class LayerView(NamedTuple):
    """What one layer does with the image tokens of a sample.

    Args:
        layer: Its number.
        on_images: Share of attention on all of them.
        grids: Share on each cell of every panel (R, C); not a number where the layer holds no token.
    """

    layer: int
    on_images: float
    grids: list[Tensor]


class SampleView(NamedTuple):
    """A sample's images with what layers do with them.

    Args:
        ids: Tokens of its prompt, and ``answer`` those of its first answer, if that is asked.
        asks: Whose attention it is.
        panels: Its images.
        present: Which cells of every panel a token stood for before any was dropped (R, C).
        views: Of the chosen layers.
    """

    ids: list[int]
    answer: list[int]
    asks: Asks
    panels: list[Panel]
    present: list[Tensor]
    views: list[LayerView]


class Watch(AttentionEdit):
    """Changes nothing, and remembers how chosen layers attend to the keys that they hold."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = list(layers)
        self.words = torch.zeros(0)  # of the first answer that ask, of each sample
        self.found: dict[int, tuple[Tensor, TokenMap]] = {}

    def at(self, layer: int, depth: int) -> bool:
        """In the chosen layers."""
        return layer in self.layers

    def rows(self, queries: TokenMap) -> Tensor:
        """None."""
        return torch.arange(0, device=queries.kind.device)

    def weights(self, rows: Rows) -> Tensor:
        """As they are."""
        return rows.old

    def measure(self, attending: Attending, layer: int) -> None:
        """Mean over the last token of the prompt, the words of the answer that ask, and heads (B, K)."""
        queries = attending.queries
        places = torch.arange(queries.kind.shape[1], device=queries.kind.device)
        answer = queries.kind == ANSWER
        asking = answer & (answer.cumsum(1) <= self.words.to(answer.device)[:, None])
        asking |= places == queries.last[:, None]
        weights = attending.received(asking)[:, 0] / asking.sum(1, keepdim=True)
        self.found[layer] = (weights, attending.keys)


def usual_layers(config: Any) -> list[int]:
    """Some layers with attention from the first to the last, evenly spaced."""
    depth = config.num_hidden_layers
    kinds = setting(config, "layer_types") or [""] * depth
    able = [layer for layer in range(depth) if kinds[layer] not in RECURRENT]
    count = min(USUAL, len(able))
    return sorted({able[round(step * (len(able) - 1) / max(count - 1, 1))] for step in range(count)})


def check_layers(config: Any, layers: Sequence[int]) -> None:
    """See that layers are there and attend.

    Raises:
        ConfigurationError: They do not.
    """
    depth = config.num_hidden_layers
    kinds = setting(config, "layer_types") or [""] * depth
    for layer in layers:
        if not 0 <= layer < depth:
            raise ConfigurationError(f"maps.layers names layer {layer}; the decoder has 0 to {depth - 1}")
        if kinds[layer] in RECURRENT:
            raise ConfigurationError(
                f"maps.layers names layer {layer}, which is of kind {kinds[layer]} and attends to nothing: leave it out"
            )


@torch.no_grad()
def view_attention(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    methods: Sequence[Edit] = (),
    layers: Sequence[int] | None = None,
    samples: int = 4,
    asks: Asks = "answer",
) -> list[SampleView]:
    """See where attention falls on images.

    Weights are those of queries, keys and masks, as methods leave them; what an attention edit makes of weights
    afterwards is not in them. Second passes of branch decoders are left out.

    Args:
        model: Of a family that recipes serve; is left as it was.
        batches: Of the instruction datamodule, padded on either side and not packed.
        methods: Of a recipe that works meanwhile, and may drop tokens.
        layers: Some that attend; a few from first to last if not given.
        samples: How many with images are seen.
        asks: Whose attention: the mean over the words of the first answer, as they are predicted, or that of the
            prompt's last token, which predicts the first of them. Where a batch has no answers it is the latter.

    Raises:
        ConfigurationError: Layers do not attend, or no sample has an image.
        ValueError: The family is not served.
    """
    parts = find_parts(model)
    config: Any = parts.decoder.config
    check_layers(config, layers or [])
    watch = Watch(usual_layers(config) if layers is None else layers)
    recipe = Recipe([*(method for method in methods if not isinstance(method, BranchDecoder)), watch])
    pictures = Pictures(model, parts, [])
    found: list[SampleView] = []
    with in_eval_mode(model), pictures.watched(), recipe.on(model):
        for batch in CalibrationSet(batches, parts):
            if len(found) >= samples:
                break
            if bool(batch.tokens.image_BT.any()):
                found += _of_batch(model, parts, batch, watch, pictures, asks)
    if not found:
        raise ConfigurationError("maps are drawn over images, and the calibration batches have none")
    return found[:samples]


def _of_batch(
    model: Any, parts: Parts, batch: CalibrationBatch, watch: Watch, pictures: Pictures, asks: Asks
) -> list[SampleView]:
    ids, labels = batch.inputs["input_ids"], batch.labels_BT
    length = torch.zeros(len(ids), dtype=torch.long, device=ids.device) if labels is None else _first_answers(labels)
    words = (length - 1).clamp(min=0)  # the last of them predicts nothing of the answer
    watch.words, watch.found = (words if asks == "answer" else torch.zeros_like(words)), {}
    given = {} if labels is None else {"labels": labels}
    model(**batch.inputs, **given, use_cache=False)
    tokens = read_tokens(
        ids,
        present_tokens(batch.inputs.get("attention_mask"), ids),
        image_id=parts.image_token_id,
        layouts=pictures.layouts,
        tiles=pictures.family.tiles,
        labels=labels,
    )
    panels = panels_of(tokens, seen_images(model, batch.inputs), tiles=pictures.family.tiles)
    found = []
    for sample, own in enumerate(panels):
        if not own:
            continue
        views = []
        for layer, (weights, keys) in sorted(watch.found.items()):
            shown = [panel.grid(keys, sample, weights[sample]) for panel in own]
            views.append(LayerView(layer, float(weights[sample][keys.visual[sample]].sum()), shown))
        answers = tokens.kind[sample] == ANSWER
        said = asks if int(length[sample]) else "last"
        found.append(
            SampleView(
                ids[sample][tokens.present[sample] & ~answers].tolist(),
                ids[sample][answers][: int(length[sample])].tolist(),
                said,
                own,
                [~panel.grid(tokens, sample, torch.ones_like(tokens.row[sample])).isnan() for panel in own],
                views,
            )
        )
    return found


def _first_answers(labels_BT: Tensor) -> Tensor:
    """Number of tokens of the first answer of each sample (B)."""
    told = labels_BT != IGNORED
    begun = told.cumsum(1) > 0
    ended = (begun & ~told).cumsum(1) > 0
    return (begun & ~ended).sum(1)
