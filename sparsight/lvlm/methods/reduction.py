"""Images with fewer tokens at the decoder's entrance.

The model has filled its own placeholders by then, so that no family needs prompts of another length.

Shape legend: B batch, T tokens, K kept tokens, N tokens of a crop, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blocks.edits.base import AttentionEdit
from blocks.tokens.attending import Attending
from blocks.tokens.base import Crop, FeatureReducer
from blocks.tokens.token_map import QUESTION, TokenMap, chosen, rows, square
from sparsight.lvlm.methods.guard import CacheGuard
from sparsight.lvlm.methods.kernels import as_bools
from sparsight.lvlm.methods.pictures import Pictures


def reduce_images(
    reducer: FeatureReducer,
    guard: CacheGuard,
    pictures: Pictures,
    embeds_BTC: Tensor,
    positions: Tensor,
    mask: Any,
    asked: Attending | None = None,
    *,
    learns: bool = False,
    block: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Reduce the crops of a batch, and let the guard know.

    Args:
        reducer: Chooses.
        guard: Of the prompt.
        pictures: Its images.
        embeds_BTC: What enters the decoder.
        positions: (B or 1, T), or several axes of it.
        mask: As the decoder is given it: (B, T), (B, 1, T, T), a dictionary of such, or none.
        asked: What the decoder's layer that the reducer looks into attends with.
        learns: Whether the model trains.
        block: The decoder layer that the reducer uses as an encoder's.

    Returns:
        Inputs of the decoder in their place.
    """
    tokens, deep = guard.prompt, guard.deep
    stays = tokens.visual & (tokens.row >= 0) if reducer.keeps_marks else tokens.visual
    keep_BT = tokens.present & ~stays  # marks at the ends of rows stay
    look = None if reducer.tower_layer is None else pictures.looking(reducer, tokens, reducer.tower_from)
    logits = None if asked is None else asked.last().logits()[:, :, 0]
    embeds_BTC = embeds_BTC.clone()
    found: dict[int, list[tuple[Tensor, Crop]]] = {}
    for sample, places in _crops(tokens.image, tokens.crop, tokens.visual & (tokens.row >= 0)):
        image, crop = int(tokens.image[sample, places[0]]), int(tokens.crop[sample, places[0]])
        attention, keys = (None, None) if look is None else look(sample, places)
        seen = Crop(
            embeds_BTC[sample, places],
            None if attention is None else attention[-1],
            keys,
            guard.seeds[sample] + 1009 * image + crop,
            attention,
            tokens.row[sample, places],
            tokens.column[sample, places],
            embeds_BTC[sample, tokens.kind[sample] == QUESTION].detach(),
            None if logits is None else logits[sample, :, places],
            crop,
            image,
            learns,
            block,
        )
        found.setdefault(sample, []).append((places, seen))
    for sample, crops in found.items():
        told = reducer.reduce_sample([crop for _, crop in crops])
        for (places, _), reduction in zip(crops, told, strict=True):
            kept = places[reduction.keep]
            keep_BT[sample, kept] = True
            if reduction.weights is not None:
                for features in (embeds_BTC, *deep):
                    features[sample, kept] = reduction.weights.to(features) @ features[sample, places]
            if reduction.features is not None:
                embeds_BTC[sample, kept] = reduction.features.to(embeds_BTC)
                for features in deep if reduction.weights is None and len(kept) < len(places) else ():
                    features[sample, kept] = 0.0
    index, valid = chosen(keep_BT)
    short = tokens.take(index, valid)
    guard.start(short._replace(place=torch.arange(index.shape[1]).to(index).expand_as(index)), index, valid)
    guard.deep, guard.changed = [rows(features, index) for features in deep], True
    guard.vision = {layer: scores.gather(1, index) for layer, scores in guard.vision.items()}
    return {
        "inputs_embeds": rows(embeds_BTC, index),
        "position_ids": _positions(reducer, guard, positions, index, valid),
        "attention_mask": _mask(mask, index, valid, tokens.kind.shape),
    }


def tower_scores(edit: AttentionEdit, tokens: TokenMap, pictures: Pictures) -> Tensor:
    """Mean attention over heads of a layer of the vision tower on each token of a prompt (B, T), 0 on text."""
    look = pictures.looking(edit, tokens)
    scores = torch.zeros(tokens.kind.shape, device=tokens.kind.device)
    for sample, places in _crops(tokens.image, tokens.crop, tokens.visual & (tokens.row >= 0)):
        scores[sample, places] = look(sample, places)[0][-1].mean(0)
    return scores


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


def _mask(mask: Any, index: Tensor, valid: Tensor, shape: Sequence[int]) -> Any:
    full = mask.get("full_attention") if isinstance(mask, dict) else mask
    if full is None or (isinstance(full, Tensor) and full.ndim == 2):
        return valid.long()
    full = square(as_bools(full, (shape[0], 1, shape[1], shape[1])), index)
    return {kind: full for kind in mask} if isinstance(mask, dict) else full
