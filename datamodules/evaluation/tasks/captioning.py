"""Describing an image in one's own words."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.evaluation.tasks.named import NamedTask
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

WORDINGS = (
    "What does the picture show?",
    "What is to be seen here?",
    "What would a short caption of this image say?",
    "What can you see in the picture?",
    "How would you describe this image?",
)


class CaptioningTask(NamedTask):
    """A description of the image in free words; the caption is the reference.

    Args:
        source: Captioned images.
        common: As for ``NamedTask`` and ``ReformulatedTask``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, source: RecordSource, **common: Any) -> None:
        super().__init__(
            source,
            captions_only=True,
            similar=None,
            default_wordings=WORDINGS,
            formulation="Generation",
            **common,
        )

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        references = (self._name_of(position),)
        return Sample(record.id, self._questions(), (record.needed_image,), references=references)
