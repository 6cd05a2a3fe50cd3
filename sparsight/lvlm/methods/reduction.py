"""Images with fewer tokens at the decoder's entrance.

The model has filled its own placeholders by then, so that no family needs prompts of another length.

Shape legend: B batch, T tokens, K kept tokens, N tokens of a crop, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.tokens.base import Crop, FeatureReducer
from blocks.tokens.token_map import chosen, rows, square
from sparsight.lvlm.methods.guard import CacheGuard, as_bools
from sparsight.lvlm.methods.pictures import Pictures


def reduce_images(
    reducer: FeatureReducer, guard: CacheGuard, pictures: Pictures, embeds_BTC: Tensor, positions: Tensor, mask: Any
) -> dict[str, Any]:
    """Reduce every crop of a batch by itself, and let the guard know.

    Args:
        reducer: Chooses.
        guard: Of the prompt.
        pictures: Its images.
        embeds_BTC: What enters the decoder.
        positions: (B or 1, T), or several axes of it.
        mask: As the decoder is given it: (B, T), (B, 1, T, T), a dictionary of such, or none.

    Returns:
        Inputs of the decoder in their place.
    """
    tokens, deep = guard.prompt, guard.deep
    keep_BT = tokens.present & ~(tokens.visual & (tokens.row >= 0))  # marks at the ends of rows stay
    look = None if reducer.tower_layer is None else pictures.looking(reducer, tokens)
    embeds_BTC = embeds_BTC.clone()
    for sample, places in _crops(tokens.image, tokens.crop, tokens.visual & (tokens.row >= 0)):
        attention, keys = (None, None) if look is None else look(sample, places)
        number = 1009 * int(tokens.image[sample, places[0]]) + int(tokens.crop[sample, places[0]])
        found = reducer.reduce(Crop(embeds_BTC[sample, places], attention, keys, guard.seeds[sample] + number))
        kept = places[found.keep]
        keep_BT[sample, kept] = True
        if found.weights is not None:
            for features in (embeds_BTC, *deep):
                features[sample, kept] = found.weights.to(features) @ features[sample, places]
    index, valid = chosen(keep_BT)
    short = tokens.take(index, valid)
    guard.start(short._replace(place=torch.arange(index.shape[1]).to(index).expand_as(index)), index, valid)
    guard.deep, guard.changed = [rows(features, index) for features in deep], True
    return {
        "inputs_embeds": rows(embeds_BTC, index),
        "position_ids": _positions(reducer, guard, positions, index, valid),
        "attention_mask": _mask(mask, index, valid),
    }


def _crops(image: Tensor, crop: Tensor, visual: Tensor) -> list[tuple[int, Tensor]]:
    """Sample and places of the tokens of each crop of a batch."""
    found = []
    for sample in visual.any(1).nonzero()[:, 0].tolist():
        places = visual[sample].nonzero()[:, 0]
        name = image[sample, places] * (int(crop.max()) + 1) + crop[sample, places]
        found += [(sample, places[name == each]) for each in name.unique().tolist()]
    return found


def _positions(reducer: FeatureReducer, guard: CacheGuard, positions: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    if reducer.positions == "keep":
        if positions.ndim == 2:
            return rows(positions, index)
        return torch.stack([rows(axis, index) for axis in positions])
    if positions.ndim > 2:
        raise ValueError(
            f"{type(reducer).__name__} numbers positions anew, which have several axes in this model: set `positions` "
            "to keep"
        )
    new = (valid.cumsum(1) - 1).clamp(min=0)
    guard.shift = (positions.expand(len(index), -1).amax(1) - new.amax(1))[:, None]
    return new


def _mask(mask: Any, index: Tensor, valid: Tensor) -> Any:
    full = mask.get("full_attention") if isinstance(mask, dict) else mask
    if full is None or full.ndim == 2:
        return valid.long()
    full = square(as_bools(full), index)
    return {kind: full for kind in mask} if isinstance(mask, dict) else full
