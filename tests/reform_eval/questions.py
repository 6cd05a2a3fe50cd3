"""A small task for tests of evaluations: which of four greys a picture has, or what its number is."""

from __future__ import annotations

from typing import Any

from PIL import Image

from datamodules.records import CorruptRecord, digest
from datamodules.reform_eval.task import EvaluationTask
from sparsight.reform_eval.sample import Sample

GREYS = ("black", "dark", "light", "white")


class GreyTask(EvaluationTask):
    """Pictures of one grey each; the others are wrong options.

    Args:
        name: Of the task.
        dimension: Of the taxonomy.
        formulation: Choose, or write the grey's name.
        count: Number of samples.
        broken: Position of one that cannot be used.
        pictures: Whether there are pictures; otherwise the question names the number.
    """

    def __init__(
        self,
        name: str = "greys",
        dimension: str = "coarse_perception",
        formulation: Any = "SingleChoice",
        count: int = 6,
        broken: int | None = None,
        pictures: bool = True,
    ) -> None:
        super().__init__(name=name, dimension=dimension, formulation=formulation)
        self.count, self.broken, self.pictures = count, broken, pictures

    def _open(self) -> None:
        pass

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise CorruptRecord(f"greys.json entry {index}: it is broken")
        right = index % len(GREYS)
        images = (Image.new("RGB", (16, 16), (80 * right,) * 3),) if self.pictures else ()
        question = f"Which grey is number {index}?"
        if self.formulation == "SingleChoice":
            return Sample(str(index), (question,), images, GREYS, right)
        return Sample(str(index), (question,), images, references=(GREYS[right],))

    def fingerprint(self) -> str:
        return digest([self.name, self.formulation, self.count])
