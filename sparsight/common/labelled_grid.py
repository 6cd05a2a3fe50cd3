"""Images in a grid, with the names of its rows and the captions of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SMALLEST = 64  # pixels that an image is wide at least: smaller ones are shown larger, so that captions fit
_GAP = 2  # pixels
_TEXT = 11  # pixels
_MOST_LINES = 4  # of a caption


def labelled_grid(rows: Mapping[str, Tensor], captions: Sequence[str]) -> Image.Image:
    """Rows of images with the name of each row on the left and a caption above each column.

    Args:
        rows: By name, images in [0, 1], (columns, 1 or 3, height, width); what is not finite is black.
        captions: One for each column; long ones are broken into lines, and cut off after the fourth.

    Raises:
        ValueError: A row has another number of images than there are captions.
    """
    font: Any = ImageFont.load_default(_TEXT)
    height, width = next(iter(rows.values())).shape[-2:]
    scale = max(1, -(-_SMALLEST // width))
    height, width = height * scale + _GAP, width * scale + _GAP
    left = 2 * _GAP + round(max((font.getlength(name) for name in rows), default=0))
    letters = max(1, int(width / font.getlength("n")))
    wrapped = [wrap(caption, letters, max_lines=_MOST_LINES, placeholder="...") for caption in captions]
    top = 2 * _GAP + max(map(len, wrapped), default=0) * (_TEXT + _GAP)
    grid = Image.new("RGB", (left + len(captions) * width, top + len(rows) * height), "white")
    pen = ImageDraw.Draw(grid)
    for column, lines in enumerate(wrapped):
        for line, text in enumerate(lines):
            pen.text((left + column * width, _GAP + line * (_TEXT + _GAP)), text, fill="black", font=font)
    for row, (name, images) in enumerate(rows.items()):
        pen.text((_GAP, top + row * height + (height - _TEXT) // 2), name, fill="black", font=font)
        for column, (image, _) in enumerate(zip(images, captions, strict=True)):
            grid.paste(_as_image(image, scale), (left + column * width, top + row * height))
    return grid


def _as_image(image: Tensor, scale: int) -> Image.Image:
    pixels = torch.nan_to_num(image.detach().float().cpu()).clamp(0, 1).expand(3, -1, -1)
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    shown = Image.fromarray(array)
    return shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
