"""The token map of a prompt, from its ids, the layout of its images, and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blocks.tokens.token_map import ANSWER, IMAGE, NOWHERE, PAD, QUESTION, SYSTEM, TokenMap
from sparsight.lvlm.methods.kernels import as_bools
from sparsight.lvlm.model.answer_losses import IGNORED


def read_tokens(
    input_ids: Tensor,
    present: Tensor,
    *,
    image_id: int,
    layouts: Sequence[Tensor] = (),
    tiles: bool = False,
    labels: Tensor | None = None,
) -> TokenMap:
    """The token map of a batch.

    Args:
        input_ids: (B, T).
        present: What is not padding (B, T).
        image_id: Id of the placeholder of an image token.
        layouts: Of the images of the whole batch (n, 3), whose tokens stand one after the other.
        tiles: Whether images whose tokens follow each other are crops of one.
        labels: Which tokens are answers (B, T), the others -100. What comes after the first of them was not known when
            the prompt was read, and counts as answer. Without labels there is none.

    Raises:
        ValueError: Placeholders are not as many as the images have tokens.
    """
    visual = (input_ids == image_id) & present
    total = sum(map(len, layouts))
    if int(visual.sum()) != total:
        raise ValueError(f"the prompts hold {int(visual.sum())} image tokens, but their images have {total}")
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    image, crop, row, column = (torch.full_like(place, NOWHERE) for _ in range(4))
    if layouts:
        laid = torch.cat(list(layouts)).to(place)
        number = torch.cat([torch.full((len(layout),), at) for at, layout in enumerate(layouts)]).to(place)
        crop[visual], row[visual], column[visual], image[visual] = laid[:, 0], laid[:, 1], laid[:, 2], number
        for sample in visual.any(1).nonzero()[:, 0]:
            _count(image[sample], crop[sample], tiles=tiles)
    kind = torch.where(visual.cumsum(1) > 0, QUESTION, SYSTEM).masked_fill(visual, IMAGE)
    if labels is not None:
        kind = torch.where((labels != IGNORED).cumsum(1) > 0, ANSWER, kind)
    return TokenMap(kind.masked_fill(~present, PAD), image, crop, row, column, place)


def _count(image: Tensor, crop: Tensor, *, tiles: bool) -> None:
    """Number the images of a sample (T) from 0; tiles without text between them become crops of one."""
    found, before = -1, NOWHERE
    for number in image[image >= 0].unique_consecutive().tolist():
        places = (image == number).nonzero()[:, 0]
        if tiles and before != NOWHERE and int(places[0]) == before + 1:
            crop[places] = int(crop[before]) + 1
        else:
            found += 1
        before = int(places[-1])
        image[places] = found


def seeds_of(input_ids: Tensor, tokens: TokenMap) -> list[int]:
    """A number for each sample that depends on the ids of its prompt and on nothing else."""
    asked = tokens.present & (tokens.kind != ANSWER)
    rank = asked.cumsum(1)
    return (((input_ids + 1) * (7919 * rank + 104_729)) * asked).sum(1).tolist()


def present_tokens(mask: Any, input_ids: Tensor) -> Tensor:
    """What is not padding (B, T), whatever form an attention mask (B, T), (B, 1, T, T) or a dictionary of such has."""
    mask = mask.get("full_attention") if isinstance(mask, dict) else mask
    if mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, : input_ids.shape[1]].bool()
    samples, length = input_ids.shape
    return as_bools(mask, (samples, 1, length, length))[:, 0, -1, :length].expand(input_ids.shape)
