"""Reading the text in an image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from datamodules.evaluation.tasks.distractors import arranged, distractors
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.evaluation.tasks.reformulated import check_options
from datamodules.evaluation.tasks.similarity import SPELLING
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

WORDINGS = (
    "What is written in the picture?",
    "Which text do you read here?",
    "Read out what stands in this image.",
    "What do the letters in the picture say?",
    "Which words are shown?",
)


class ReadingTask(NamedTask):
    """What is written in the image, in the model's own words or as a choice among similar spellings.

    Args:
        source: Images whose captions are the text in them, such as ``RenderedTextRecords``.
        formulation: ``OCROpenEnded`` or ``SingleChoice``.
        similar: As for ``NamedTask``; by spelling if not said otherwise.
        options: Texts to choose from, with ``SingleChoice``.
        common: As for ``NamedTask`` and ``ReformulatedTask``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        formulation: Literal["OCROpenEnded", "SingleChoice"] = "OCROpenEnded",
        similar: str | None = SPELLING,
        options: int = 4,
        **common: Any,
    ) -> None:
        if formulation not in ("OCROpenEnded", "SingleChoice"):
            raise ValueError(f"formulation is {formulation!r}; allowed: OCROpenEnded, SingleChoice")
        super().__init__(
            source, captions_only=True, similar=similar, default_wordings=WORDINGS, formulation=formulation, **common
        )
        self.options = check_options(options)

    def _read(self) -> None:
        super()._read()
        if self.formulation == "SingleChoice":
            self._need_names(self.options)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        text, images = self._name_of(position), (record.needed_image,)
        if self.formulation == "OCROpenEnded":
            return Sample(record.id, self._questions(), images, references=(text,))
        wrong = distractors(text, self._members, self.options - 1, rng=rng, similar=self._similarity)
        options, answer = arranged(text, wrong, rng=rng)
        return Sample(record.id, self._questions(), images, options, answer)
