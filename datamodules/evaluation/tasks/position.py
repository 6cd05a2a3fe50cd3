"""Where an image is on a canvas, or what is at a place."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from datamodules.evaluation.tasks import canvas
from datamodules.evaluation.tasks.distractors import arranged
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

Kind = Literal["where", "what"]
Layout = Literal["corners", "halves"]
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
SIDES = {"left": (0, 0.5), "right": (1, 0.5)}
ENDS = {"top": (0.5, 0), "bottom": (0.5, 1)}
WORDINGS = {
    "where": (
        'Where is "{name}"?',
        'At which place of the picture do you see "{name}"?',
        'In what part of the image is "{name}"?',
        'Look for "{name}". Where did you find it?',
        'Which part of this sheet shows "{name}"?',
    ),
    "what": (
        "What is at the {place}?",
        "Which thing do you see at the {place} of the picture?",
        "Look at the {place} of the image. What is shown there?",
        "Name what is at the {place}.",
        "At the {place} of this sheet there is one thing. Which?",
    ),
}


class PositionTask(NamedTask):
    """Where one of the images on a white canvas is, or which of them is at a place.

    Args:
        source: Labelled or captioned images.
        kind: ``where`` (options are the places) or ``what`` (options are the names of the images on the canvas).
        layout: ``corners`` (four images) or ``halves`` (two, beside or above each other).
        others: Images besides the one that is asked for; one at every other place if not given. With ``where`` it may
            be less, down to 0: places without an image are options all the same.
        canvas_size: Height and width of the canvas in pixels.
        common: As for ``NamedTask`` and ``ReformulatedTask``; wordings have the field ``{name}`` with ``where`` and
            ``{place}`` with ``what``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        kind: Kind = "where",
        layout: Layout = "corners",
        others: int | None = None,
        canvas_size: int = 336,
        **common: Any,
    ) -> None:
        for option, value, allowed in (("kind", kind, get_args(Kind)), ("layout", layout, get_args(Layout))):
            if value not in allowed:
                raise ValueError(f"{option} is {value!r}; allowed: {', '.join(allowed)}")
        super().__init__(source, default_wordings=WORDINGS[kind], formulation="SingleChoice", **common)
        self.kind = kind
        self.layout = layout
        most = (4 if layout == "corners" else 2) - 1
        self.others = most if others is None else others
        self.canvas_size = canvas_size
        least = 0 if kind == "where" else most
        if not least <= self.others <= most:
            span = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"others is {others}; allowed with kind {kind} and layout {layout}: {span}")
        if canvas_size < 32:
            raise ValueError(f"canvas_size is {canvas_size}; allowed: 32 or more pixels")

    def _read(self) -> None:
        super()._read()
        self._need_names(self.others + 1)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        name = self._name_of(position)
        places = CORNERS if self.layout == "corners" else (SIDES, ENDS)[int(rng.integers(2))]
        others = self._other_names(name, self.others, rng)
        images = [record.needed_image, *(self.source[self._position_of(other, rng)].needed_image for other in others)]
        order = [list(places)[number] for number in rng.permutation(len(places))]
        image = self._composed(images, [places[place] for place in order[: len(images)]])
        if self.kind == "where":
            options, answer = arranged(order[0], order[1:], rng=rng)
            return Sample(record.id, self._questions(name=name), (image,), options, answer)
        options, answer = arranged(name, others, rng=rng)
        return Sample(record.id, self._questions(place=order[0]), (image,), options, answer)

    def _composed(self, images: list[Any], places: list[tuple[float, float]]) -> Any:
        side = self.canvas_size * 2 // 5
        free = self.canvas_size - side - 2 * canvas.GAP
        corners = [(canvas.GAP + round(free * x), canvas.GAP + round(free * y)) for x, y in places]
        return canvas.composed(zip(images, corners, strict=True), size=self.canvas_size, side=side)
