"""Pictures put together on a plain canvas."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from datamodules.images.image_dataset import flatten_image

GAP = 4  # least pixels between two images, and to the border


def capacity(size: int, *, side: int) -> int:
    """How many images of ``side`` pixels ``scattered`` finds places for on a square of ``size`` pixels."""
    return _cells(size, side) ** 2


def scattered(count: int, *, size: int, side: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Drawn places (left, top) for squares of ``side`` pixels that neither touch each other nor the border.

    Args:
        count: Number of places, up to the ``capacity``.
        size: Height and width of the canvas in pixels.
        side: Height and width of a square in pixels.
        rng: Source of the draw.
    """
    cells = _cells(size, side)
    drawn = rng.permutation(cells * cells)[:count]
    pitch = (size - GAP) // cells
    corners_N2 = GAP + pitch * np.stack(np.divmod(drawn, cells), axis=1)
    places_N2 = corners_N2 + rng.integers(pitch - side - GAP + 1, size=corners_N2.shape)
    return [(int(left), int(top)) for left, top in places_N2]


def composed(placed: Iterable[tuple[Image.Image, tuple[int, int]]], *, size: int, side: int) -> Image.Image:
    """A white square of ``size`` pixels with images at (left, top), each in the middle of a square of ``side``.

    Raises:
        CorruptRecord: An image has more than 8 bits a channel.
    """
    canvas = Image.new("RGB", (size, size), "white")
    for image, (left, top) in placed:
        scaled = _scaled(image, side)
        at = left + (side - scaled.width) // 2, top + (side - scaled.height) // 2
        canvas.paste(scaled, at, scaled)
    return canvas


def _scaled(image: Image.Image, side: int) -> Image.Image:
    if not image.has_transparency_data:
        image = flatten_image(image, channels=3, background=0)
    factor = side / max(image.size)
    width, height = (max(1, round(factor * length)) for length in image.size)
    return image.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)


def _cells(size: int, side: int) -> int:
    return (size - GAP) // (side + GAP)
