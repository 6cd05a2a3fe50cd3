"""Counting the copies of an image among others."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.evaluation.tasks import canvas
from datamodules.evaluation.tasks.distractors import arranged
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.evaluation.tasks.reformulated import check_options
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

WORDINGS = (
    'How many times does "{name}" appear?',
    'How often is "{name}" shown in the picture?',
    'Count the copies of "{name}". How many are there?',
    'What is the number of pictures of "{name}" on this sheet?',
    'How many of the things shown are "{name}"?',
)


class CountingTask(NamedTask):
    """How many copies of an image are on a white canvas, alone or among a few others of different names.

    The options are a drawn row of neighbours from the range of counts, and each of them is as likely the right one, so
    they do not give it away. Counts at the ends of the range are rarer for that.

    Args:
        source: Labelled or captioned images.
        low: Fewest copies.
        high: Most copies.
        others: Most other images; there is at least one, unless this is 0.
        canvas_size: Height and width of the canvas in pixels.
        side: Pixels of the longer side of each image on it.
        options: Numbers to choose from.
        common: As for ``NamedTask`` and ``ReformulatedTask``; wordings have the field ``{name}``.

    Raises:
        ValueError: An option is out of range, or there is no room for so many images.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        low: int = 1,
        high: int = 8,
        others: int = 3,
        canvas_size: int = 336,
        side: int = 72,
        options: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(source, default_wordings=WORDINGS, formulation="SingleChoice", **common)
        self.low, self.high, self.others = low, high, others
        self.canvas_size, self.side = canvas_size, side
        self.options = check_options(options)
        if low < 1 or high < low + options - 1:
            raise ValueError(
                f"low is {low} and high {high}; allowed: 1 or more, with {options} numbers from low to high"
            )
        if others < 0 or side < 1:
            raise ValueError(f"others is {others} and side {side}; allowed: 0 or more, and 1 or more")
        if high + others > canvas.capacity(canvas_size, side=side):
            raise ValueError(
                f"{high} copies and {others} others of side {side} do not fit on a canvas of {canvas_size} pixels, "
                f"which has room for {canvas.capacity(canvas_size, side=side)}; set a smaller high, others or side"
            )

    def _read(self) -> None:
        super()._read()
        self._need_names(self.others + 1)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        name = self._name_of(position)
        first = int(rng.integers(self.low, self.high - self.options + 2))
        row = range(first, first + self.options)
        count = row[int(rng.integers(len(row)))]
        others = self._other_names(name, int(rng.integers(1, self.others + 1)), rng) if self.others else []
        images = [record.needed_image] * count + [
            self.source[self._position_of(other, rng)].needed_image for other in others
        ]
        places = canvas.scattered(len(images), size=self.canvas_size, side=self.side, rng=rng)
        image = canvas.composed(zip(images, places, strict=True), size=self.canvas_size, side=self.side)
        options, answer = arranged(str(count), [str(number) for number in row if number != count], rng=rng)
        return Sample(record.id, self._questions(name=name), (image,), options, answer)
