"""Naming what an image shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.evaluation.tasks.distractors import arranged
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.evaluation.tasks.reformulated import check_options
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

WORDINGS = (
    "What does the picture show?",
    "Which name fits what you see here?",
    "What is the thing in this image called?",
    "What is pictured?",
    "How would you name what is shown?",
)


class NamingTask(NamedTask):
    """Classification: which of some names belongs to the image.

    Args:
        source: Labelled or captioned images.
        options: Names to choose from.
        common: As for ``NamedTask`` and ``ReformulatedTask``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, source: RecordSource, *, options: int = 4, **common: Any) -> None:
        super().__init__(source, default_wordings=WORDINGS, formulation="SingleChoice", **common)
        self.options = check_options(options)

    def _read(self) -> None:
        super()._read()
        self._need_names(self.options)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        name = self._name_of(position)
        options, answer = arranged(name, self._other_names(name, self.options - 1, rng), rng=rng)
        return Sample(record.id, self._questions(), (record.needed_image,), options, answer)
