"""Grounding: where in an image is what a text describes, as the box around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from datamodules.sampler import derive_seed
from sparsight.common.errors import require
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.evaluation.texts.boxes import Box, overlap

Unit = Literal["fractions", "thousandths", "pixels"]
UNITS: dict[Unit, str] = {
    "fractions": "as fractions of width and height from 0 to 1",
    "thousandths": "as whole numbers from 0 to 1000 along width and height",
    "pixels": "in pixels",
}
_DRAWS = 100  # of a wrong box that covers little of the right one
_LITTLE = 0.5  # intersection over union at which a box counts as right


class GroundingTask(BenchmarkTask):
    """Boxes by intersection over union, as in OV-VG (Wang et al., arXiv 2310.14374) and RefCOCO.

    By likelihood the right box stands beside others of its size elsewhere in the image.

    Args:
        path: Folder, file or hub id with the columns ``image``, ``phrase`` (a text, or a list whose first counts)
            and ``bbox`` (four numbers, in pixels), and perhaps ``category``, by which scores are told apart.
        unit: In which boxes are asked for: what the model was trained on.
        corners: ``bbox`` holds left, top, right and lower end, not left, top, width and height.
        common: As for ``BenchmarkTask``.

    Raises:
        ConfigurationError: An option is out of range.
    """

    own_name = "grounding"
    needed = ("image", "phrase", "bbox")
    answered_by = "bbox"
    rule = "boxes"

    def __init__(self, path: str, *, unit: Unit = "fractions", corners: bool = False, **common: Any) -> None:
        require(unit in UNITS, "unit", unit, ", ".join(UNITS))
        super().__init__(path, **common)
        self.unit = unit
        self.corners = corners
        self.sentence = f"Give the box around it as [left, top, right, bottom] {UNITS[unit]}."

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        image = self._image(row)
        phrase = row["phrase"][0] if isinstance(row["phrase"], list) and row["phrase"] else row["phrase"]
        box = read_corners(row["bbox"], corners=self.corners, size=image.size)
        others = _elsewhere(box, image.size, self.options - 1, rng=np.random.default_rng(derive_seed(self.seed, index)))
        place = int(np.random.default_rng(derive_seed(self.seed, index, 1)).integers(len(others) + 1))
        texts = [self._written(each, image.size) for each in others]
        right = self._written(box, image.size)
        kind = row.get("category")
        return Sample(
            str(index),
            (f"Where is this in the image: {self._text({'phrase': phrase}, 'phrase')}",),
            (image,),
            (*texts[:place], right, *texts[place:]),
            place,
            references=(right,),
            categories=(str(kind),) if kind else (),
        )

    def _written(self, box: Box, size: tuple[int, int]) -> str:
        ends = [end / size[place % 2] for place, end in enumerate(box)]
        if self.unit == "fractions":
            return f"[{', '.join(f'{end:.3f}' for end in ends)}]"
        whole = [end * (1000 if self.unit == "thousandths" else size[place % 2]) for place, end in enumerate(ends)]
        return f"[{', '.join(str(round(end)) for end in whole)}]"


def read_corners(value: Any, *, corners: bool, size: tuple[int, int]) -> Box:
    """Left, top, right and lower end of a box in pixels.

    Raises:
        ValueError: It is none, is empty, or lies outside the image.
    """
    if not isinstance(value, Sequence) or len(value) != 4:
        raise ValueError(f"bbox is {value!r}, not four numbers")
    left, top, right, lower = (float(number) for number in value)
    if not corners:
        right, lower = left + right, top + lower
    if not (0 <= left < right <= size[0] + 1 and 0 <= top < lower <= size[1] + 1):
        told = "left, top, right, bottom" if corners else "left, top, width, height"
        raise ValueError(f"bbox {value!r}, taken as {told}, does not lie in the image of {size[0]} x {size[1]} pixels")
    return left, top, min(right, size[0]), min(lower, size[1])


def _elsewhere(box: Box, size: tuple[int, int], count: int, *, rng: np.random.Generator) -> list[Box]:
    """Boxes of equal size that cover little of it, or a quarter of its size where it fills the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    found: list[Box] = []
    for draw in range(_DRAWS * count):
        if len(found) == count:
            break
        scale = 1.0 if draw < _DRAWS * count // 2 else 0.5
        wide, high = scale * width, scale * height
        left, top = rng.uniform(0, size[0] - wide), rng.uniform(0, size[1] - high)
        other = (left, top, left + wide, top + high)
        if overlap(other, box) < _LITTLE and all(overlap(other, each) < 0.95 for each in found):  # not twice
            found.append(other)
    return found
