"""How well a written box covers the right one.

A box is its left, top, right and lower end. Units do not matter as long as both have the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column

Box = tuple[float, float, float, float]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
_BETWEEN = re.compile(r"[\s,;()<>\[\]|]*(?:and|to)?[\s,;()<>\[\]|]*")


class BoxIoU(AnswerMetric):
    """Mean intersection over union of written boxes with the right ones, 0 to 1; an output without a box has 0."""

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """0 to 1 for every sample, (N, 1), from outputs and lists of accepted boxes, of which the best counts."""
        check_references(predictions, targets)
        pairs = zip(predictions, targets, strict=True)
        return column([self._score(max(_iou(output, box) for box in accepted)) for output, accepted in pairs])

    def _score(self, iou: float) -> float:
        return iou


class BoxAccuracy(BoxIoU):
    """Share of written boxes whose intersection over union with the right one is high enough, 0 to 1.

    Args:
        threshold: Least intersection over union; 0.5 in grounding (OV-VG, RefCOCO).
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def _score(self, iou: float) -> float:
        return float(iou >= self.threshold)


def read_box(text: str) -> Box | None:
    """The first four numbers of a text with nothing but brackets and commas between them; ends in rising order."""
    numbers = [*_NUMBER.finditer(text)]
    for start in range(len(numbers) - 3):
        four = numbers[start : start + 4]
        if all(_BETWEEN.fullmatch(text[a.end() : b.start()]) for a, b in pairwise(four)):
            left, top, right, lower = (float(number[0]) for number in four)
            return min(left, right), min(top, lower), max(left, right), max(top, lower)
    return None


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / union if union > 0 else 0.0


def _iou(output: str, right: str) -> float:
    said, wanted = read_box(output), read_box(right)
    return 0.0 if said is None or wanted is None else overlap(said, wanted)
