"""Benchmarks of questions that are answered in a word or two of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from datamodules.evaluation.benchmarks.rows import Rows, decoded
from sparsight.evaluation.reform_eval.sample import Sample


class VQAv2Task(BenchmarkTask):
    """VQAv2 (Goyal et al., arXiv 1612.00837): open questions about photographs, each answered by ten people.

    By likelihood the most frequent of their answers stands beside answers to other questions.

    Args:
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/VQAv2"
    own_split = "validation"
    own_name = "vqav2"
    needed = ("question", "answers", "image")
    answered_by = "answers"
    rule = "vqa"

    def _answers_of(self, value: Any) -> list[str]:
        """All that people gave, the most frequent first, and of equally frequent ones that which was given earlier."""
        given = [str(each["answer"] if isinstance(each, Mapping) else each).strip() for each in value or ()]
        given = [text for text in given if text]
        counts = Counter(given)
        return sorted(given, key=lambda text: -counts[text])

    def _is_told(self, value: Any) -> bool:
        return bool(self._answers_of(value))

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        people = self._answers_of(row["answers"])
        options, answer = self._weighed_beside(people[0], people, index)
        kind = row.get("answer_type")
        return Sample(
            str(index),
            (self._text(row, "question"),),
            (self._image(row),),
            options,
            answer,
            references=tuple(people),
            categories=(str(kind),) if kind else (),
        )


class TextVQATask(VQAv2Task):
    """TextVQA (Singh et al., arXiv 1904.08920): questions about what is written in the image, scored as VQAv2.

    Args:
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/textvqa"
    own_name = "textvqa"


class GQATask(BenchmarkTask):
    """GQA (Hudson and Manning, arXiv 1902.09506): questions about scenes, each with one right answer.

    Images are published apart, under their ids; a column ``image`` beside the questions is taken, too.

    Args:
        images: Folder, file or hub id with the columns ``id`` and ``image``; where the questions are if not given.
        images_config: Its configuration.
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/GQA"
    own_config = "testdev_balanced_instructions"
    own_split = "testdev"
    own_name = "gqa"
    needed = ("question", "answer")
    rule = "exact"

    def __init__(
        self,
        path: str | None = None,
        *,
        images: str | None = None,
        images_config: str | None = "testdev_balanced_images",
        **common: Any,
    ) -> None:
        super().__init__(path, **common)
        self.images = images
        self.images_config = images_config
        self._pictures = Rows(
            images or self.path,
            config=images_config,
            split=self.split,
            revision=self.revision,
            columns={},
            task=f"{self.name} (images)",
        )
        self._place_of: dict[str, int] = {}

    def check_paths(self) -> None:
        """See that paths which cannot be ids of the hub are there."""
        super().check_paths()
        self._pictures.check_paths()

    def prepare(self) -> None:
        """Download questions and images."""
        super().prepare()
        if not self._rows.has("image"):
            _ = self._pictures.data

    def _open(self) -> None:
        super()._open()
        if self._rows.has("image"):
            return
        self._rows.need(["imageId"])
        if self.images is None and Path(self.path).is_file():
            raise ValueError(
                f"task {self.name}: {self.path} has no column 'image': set images to the parquet files of "
                f"{self.images_config}, which hold the images under their ids"
            )
        self._pictures.need(["id", "image"])
        self._place_of = {str(name): place for place, name in enumerate(self._pictures.column("id"))}

    def _picture(self, row: Mapping[str, Any]) -> Image.Image:
        if "image" in row:
            return self._image(row)
        name = str(row["imageId"])
        if name not in self._place_of:
            raise ValueError(f"there is no image {name!r} in {self._pictures.where()}")
        found = self._pictures[self._place_of[name]]
        return decoded(found["image"], column="image", max_pixels=self.max_pixels)

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        right = self._text(row, "answer")
        options, answer = self._weighed_beside(right, [right], index)
        kind = (row.get("types") or {}).get("structural")
        return Sample(
            str(index),
            (self._text(row, "question"),),
            (self._picture(row),),
            options,
            answer,
            references=(right,),
            categories=(str(kind),) if kind else (),
        )
