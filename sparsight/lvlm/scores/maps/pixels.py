"""Images as a model saw them, out of what its processor made of them.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def seen_images(model: Any, inputs: Mapping[str, Any]) -> list[list[Tensor]]:
    """Crops (H, W, 3) of every image or tile whose features the model makes, with numbers from 0 to 1.

    Numbers are stretched to the darkest and brightest of their image, since processors shift and scale them in
    different ways.

    Args:
        model: Of a family that recipes serve.
        inputs: Of its forward pass, with ``pixel_values``.
    """
    pixels: Tensor = inputs["pixel_values"]
    pixels = pixels.detach().float().cpu()
    if inputs.get("image_grid_thw") is not None:
        found = _from_merged(model.config.vision_config, pixels, inputs["image_grid_thw"])
    elif inputs.get("spatial_shapes") is not None:
        found = _from_rows(model.config.vision_config.patch_size, pixels, inputs["spatial_shapes"])
    elif inputs.get("image_sizes") is not None:
        found = [list(crops) for crops in (pixels if pixels.ndim == 5 else pixels[:, None])]
    else:
        tiles = pixels.flatten(0, -4) if pixels.ndim > 4 else pixels
        found = [[tile] for tile in tiles if pixels.ndim == 4 or bool((tile != 0).any())]  # empty ones fill rows up
    return [_bright(crops) for crops in found]


def _from_merged(vision: Any, pixels: Tensor, grids: Tensor) -> list[list[Tensor]]:
    """Qwen's patches, those of a square that is merged one after the other; the first moment of each."""
    side, patch, moments = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    found, begin = [], 0
    for frames, height, width in grids.tolist():
        count = frames * height * width
        blocks = (frames, height // side, width // side, side, side, -1, moments, patch, patch)
        patches = pixels[begin : begin + count].reshape(blocks)[:, :, :, :, :, :, 0]
        whole = patches.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(frames, -1, height * patch, width * patch)
        found.append(list(whole))
        begin += count
    return found


def _from_rows(patch: int, pixels: Tensor, shapes: Tensor) -> list[list[Tensor]]:
    """LFM2-VL's patches, row by row, with padding behind them."""
    found = []
    for tile, (height, width) in zip(pixels, shapes.tolist(), strict=True):
        patches = tile[: height * width].reshape(height, width, patch, patch, -1)
        found.append([patches.permute(4, 0, 2, 1, 3).reshape(-1, height * patch, width * patch)])
    return found


def _bright(crops: list[Tensor]) -> list[Tensor]:
    low, high = min(float(crop.min()) for crop in crops), max(float(crop.max()) for crop in crops)
    return [((crop - low) / max(high - low, 1e-6)).movedim(0, -1).clamp(0, 1) for crop in crops]


def side_by_side(tiles: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Tiles of one size put together (H, W, 3), by their row and column among tiles; black where there is none."""
    height, width, channels = next(iter(tiles.values())).shape
    rows, columns = (max(place[axis] for place in tiles) + 1 for axis in (0, 1))
    whole = torch.zeros(rows * height, columns * width, channels)
    for (row, column), tile in tiles.items():
        whole[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return whole
