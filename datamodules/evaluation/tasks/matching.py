"""Whether text and image belong together."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from datamodules.evaluation.tasks.distractors import arranged
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.evaluation.tasks.reformulated import check_options
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

Kind = Literal["yes_no", "choice"]
WORDINGS = {
    "yes_no": (
        'Does the text "{text}" describe this picture?',
        'Do the picture and the words "{text}" belong together?',
        'Is "{text}" a fitting description of what is shown?',
        'Somebody wrote "{text}" under this image. Is that right?',
        'Would "{text}" be a true caption here?',
    ),
    "choice": (
        "Which text describes this picture?",
        "Which caption belongs to this image?",
        "Which words fit what is shown?",
        "What was written under this picture?",
        "Which description is true of this image?",
    ),
}


class MatchingTask(NamedTask):
    """Does a text match the image, or which of some texts does.

    Half of the answers are yes: exactly so where every record can be asked about, else nearly.

    Args:
        source: Labelled or captioned images; class names, or captions, are the texts.
        kind: ``yes_no`` or ``choice``.
        options: Texts to choose from, with ``choice``.
        common: As for ``NamedTask`` and ``ReformulatedTask``; wordings have the field ``{text}`` with ``yes_no``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, source: RecordSource, *, kind: Kind = "yes_no", options: int = 4, **common: Any) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(get_args(Kind))}")
        super().__init__(source, default_wordings=WORDINGS[kind], formulation="SingleChoice", **common)
        self.kind = kind
        self.options = check_options(options)

    def _read(self) -> None:
        super()._read()
        self._need_names(2 if self.kind == "yes_no" else self.options)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        name, images = self._name_of(position), (record.needed_image,)
        if self.kind == "choice":
            options, answer = arranged(name, self._other_names(name, self.options - 1, rng), rng=rng)
            return Sample(record.id, self._questions(), images, options, answer)
        matches = self._ranks[position] % 2 == 0
        text = name if matches else self._other_names(name, 1, rng)[0]
        options, answer = arranged(*(("yes", ["no"]) if matches else ("no", ["yes"])), rng=rng)
        return Sample(record.id, self._questions(text=text), images, options, answer)
