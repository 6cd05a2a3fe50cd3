"""Families of image-text models that recipes are tried with, and how each lays out the tokens of an image.

A layout tells for every token of an image (n, 3) which crop, row and column it stands for, -1 for marks at row ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from blocks.tokens.token_map import NOWHERE
from sparsight.common.names import named
from sparsight.common.plain import setting

Layouts = Callable[[Any, Mapping[str, Any], Sequence[int]], list[Tensor]]


class Family(NamedTuple):
    """What differs between families.

    Args:
        layouts: Of images, by the model inside, what it was given to make features, and numbers of tokens.
        tiles: Whether images whose tokens follow each other without text are crops of one.
        patches: How patches of the vision tower that become one token lie: in a square of the image, in a run one after
            the other, or in an order that is not known here.
    """

    layouts: Layouts
    tiles: bool = False
    patches: Literal["square", "run", "unknown"] = "square"


def _grid(height: int, width: int, frames: int = 1) -> Tensor:
    return torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).reshape(-1, 3)


def _square(_model: Any, _given: Mapping[str, Any], counts: Sequence[int]) -> list[Tensor]:
    """As many rows as columns; one row where that is not possible."""
    sides = [math.isqrt(count) for count in counts]
    return [
        _grid(side, side) if side * side == count else _grid(1, count)
        for side, count in zip(sides, counts, strict=True)
    ]


def _merged(model: Any, given: Mapping[str, Any], _counts: Sequence[int]) -> list[Tensor]:
    """Qwen's grids of patches, of which squares are merged."""
    side = model.config.vision_config.spatial_merge_size
    return [_grid(h // side, w // side, t) for t, h, w in given["image_grid_thw"].tolist()]


def _shuffled(model: Any, given: Mapping[str, Any], _counts: Sequence[int]) -> list[Tensor]:
    """LFM2-VL's tiles of any shape, of which squares are merged."""
    side = model.config.downsample_factor
    return [_grid(-(-h // side), -(-w // side)) for h, w in given["spatial_shapes"].tolist()]


def _any_resolution(model: Any, given: Mapping[str, Any], counts: Sequence[int]) -> list[Tensor]:
    """The whole image, its tiles put together without what pads them, and a mark after every row.

    The model packs numbers as it packs features.
    """
    config, module = model.config, type(model).__module__
    shape_of, tiles_of = (
        named(f"{module}.{name}") for name in ("get_anyres_image_grid_shape", "image_size_to_num_patches")
    )
    whole = config.vision_config.image_size
    side = whole // config.vision_config.patch_size
    mark = torch.full((3,), float(NOWHERE))
    found = []
    for size, count in zip(given["image_sizes"], counts, strict=True):
        if count == side * side + 1:  # one of several images, without tiles
            found.append(torch.cat([_grid(side, side), mark.long()[None]]))
            continue
        width = shape_of(size, config.image_grid_pinpoints, whole)[1]
        tiles = int(tiles_of(size, config.image_grid_pinpoints, whole)) - 1
        numbers = [_grid(side, side)]
        for tile in range(tiles):
            move = torch.tensor([tile + 1, tile // width * side, tile % width * side])
            numbers.append(_grid(side, side) + move)
        said = {"vision_feature_select_strategy": "full", "vision_aspect_ratio": setting(config, "vision_aspect_ratio")}
        asked = signature(model.pack_image_features).parameters
        options = {name: value for name, value in said.items() if name in asked}
        packed, _ = model.pack_image_features([torch.stack(numbers).float()], [size], image_newline=mark, **options)
        found.append(packed[0].round().long())
    return found


FAMILIES = {
    "llava": Family(_square),
    "llava_next": Family(_any_resolution),
    "llava_onevision": Family(_any_resolution),
    "fast_vlm": Family(_square),
    "paligemma": Family(_square),
    "gemma3": Family(_square),
    "internvl": Family(_square, tiles=True),
    "qwen2_5_vl": Family(_merged, patches="unknown"),
    "qwen3_vl": Family(_merged, patches="run"),
    "qwen3_5": Family(_merged, patches="run"),
    "lfm2_vl": Family(_shuffled, patches="unknown"),
    "smolvlm": Family(_square),
    "idefics3": Family(_square),
}


def family_of(config: Any) -> Family:
    """What is known of a model's family.

    Raises:
        ValueError: Recipes are not tried with it.
    """
    known = FAMILIES.get(config.model_type)
    if known is None:
        raise ValueError(f"recipes do not serve {config.model_type}; they serve {', '.join(FAMILIES)}")
    return known
