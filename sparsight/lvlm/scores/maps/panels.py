"""Images of a prompt as panels: pixels that were seen, and the grid of tokens that stand for them.

Shape legend: T tokens of a sample, H, W pixels, R, C rows and columns of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blocks.tokens.token_map import TokenMap
from sparsight.lvlm.scores.maps.pixels import side_by_side


class Panel(NamedTuple):
    """A crop of an image, or its tiles put together.

    Args:
        title: Which image, and which part of it.
        pixels: (H, W, 3).
        image: Number of the image in its sample.
        crops: Numbers of the crops that are shown.
        corner: Row and column at which the panel begins.
        shape: R and C.
    """

    title: str
    pixels: Tensor
    image: int
    crops: tuple[int, ...]
    corner: tuple[int, int]
    shape: tuple[int, int]

    def grid(self, tokens: TokenMap, sample: int, values: Tensor) -> Tensor:
        """Numbers of tokens (T) at their cells (R, C); not a number where there is no token."""
        at = tokens.visual[sample] & (tokens.row[sample] >= 0) & (tokens.image[sample] == self.image)
        at &= torch.isin(tokens.crop[sample], torch.tensor(self.crops, device=at.device))
        found = torch.full(self.shape, float("nan"))
        row, column = (part[sample][at].cpu() for part in (tokens.row, tokens.column))
        found[row - self.corner[0], column - self.corner[1]] = values[at].float().cpu()
        return found


def panels_of(tokens: TokenMap, images: Sequence[Sequence[Tensor]], *, tiles: bool) -> list[list[Panel]]:
    """Panels of every sample of a batch.

    Args:
        tokens: Of the whole prompt, before anything is dropped.
        images: Crops (H, W, 3) of what the model made features of, in the order of the batch.
        tiles: Whether features are made of crops one by one.

    Raises:
        ValueError: There are more or fewer images than the tokens stand for.
    """
    found: list[list[Panel]] = []
    entry = 0
    for sample in range(len(tokens.kind)):
        shown = tokens.visual[sample] & (tokens.row[sample] >= 0)
        panels: list[Panel] = []
        for image in tokens.image[sample][shown].unique().tolist():
            here = shown & (tokens.image[sample] == image)
            crop, row, column = (part[sample][here].cpu() for part in (tokens.crop, tokens.row, tokens.column))
            count = int(crop.max()) + 1 if tiles else 1
            crops = [pixels for group in images[entry : entry + count] for pixels in group]
            panels += _of_image(image, crop, row, column, crops)
            entry += count
        found.append(panels)
    if entry != len(images):
        raise ValueError(f"tokens of {entry} images are laid out, and the model was given {len(images)}")
    return found


def _of_image(image: int, crop: Tensor, row: Tensor, column: Tensor, crops: Sequence[Tensor]) -> list[Panel]:
    """The whole image, its frames or its tiles; tiles that lie in one grid are put together."""
    numbers, name = crop.unique().tolist(), f"image {image + 1}"
    height, width = (int(axis[crop == numbers[0]].max()) + 1 for axis in (row, column))
    places = {n: (int(row[crop == n].min()) // height, int(column[crop == n].min()) // width) for n in numbers}
    laid = numbers[1:]

    def single(number: int, title: str) -> Panel:
        corner = (places[number][0] * height, places[number][1] * width)
        return Panel(title, crops[number], image, (number,), corner, (height, width))

    if len({places[number] for number in laid}) < max(len(laid), 2):
        titles = [name if len(numbers) == 1 else f"{name}, part {number + 1}" for number in numbers]
        return [single(number, title) for number, title in zip(numbers, titles, strict=True)]
    rows, columns = (max(places[number][axis] for number in laid) + 1 for axis in (0, 1))
    pixels = side_by_side({places[number]: crops[number] for number in laid})
    mosaic = Panel(f"{name}, {len(laid)} tiles", pixels, image, tuple(laid), (0, 0), (rows * height, columns * width))
    return [single(numbers[0], f"{name}, whole"), mosaic]
