"""Benchmarks of questions with options."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from datamodules.evaluation.benchmarks.benchmark import LETTER, BenchmarkTask
from sparsight.common.errors import require
from sparsight.evaluation.reform_eval.sample import Sample

MISSING = (None, "", "nan")  # cells of tables that went through pandas
ROTATION = 1_000_000  # by which MMBench numbers the rotations of a question


class ChoiceTask(BenchmarkTask):
    """Base of benchmarks whose questions have options, asked for by their letters."""

    lists_options = True
    sentence = LETTER
    rule = "choice"


class ScienceQATask(ChoiceTask):
    """ScienceQA (Lu et al., arXiv 2209.09513): questions of school science with two to five options.

    Args:
        common: As for ``BenchmarkTask``. With ``config: ScienceQA-FULL`` those without images are asked, too.
    """

    hub = "lmms-lab-encoder/ScienceQA"
    own_config = "ScienceQA-IMG"
    own_name = "scienceqa"
    needed = ("question", "choices", "answer", "image")

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        hint = str(row.get("hint") or "").strip()
        images = () if row["image"] is None else (self._image(row),)
        question = self._text(row, "question")
        return Sample(
            str(index),
            (f"Context: {hint}\n{question}" if hint else question,),
            images,
            tuple(str(choice).strip() for choice in row["choices"]),
            int(row["answer"]),
            categories=tuple(_kinds(row, bool(images), bool(hint))),
        )


def _kinds(row: Mapping[str, Any], image: bool, hint: bool) -> Iterable[str]:
    """ScienceQA's table: subject, what comes with the question, and grade."""
    if row.get("subject"):
        yield str(row["subject"])
    yield from (name for name, is_there in (("with image", image), ("with text", hint)) if is_there)
    if not image and not hint:
        yield "without context"
    grade = str(row.get("grade") or "").removeprefix("grade")
    if grade.isdigit():
        yield "grades 1-6" if int(grade) <= 6 else "grades 7-12"


SEED_KINDS = (
    *("scene understanding", "instance identity", "instance attributes", "instance location", "instances counting"),
    *("spatial relation", "instance interaction", "visual reasoning", "text understanding", "action recognition"),
    *("action prediction", "procedure understanding"),
)


class SEEDTask(ChoiceTask):
    """SEED-Bench (Li et al., arXiv 2307.16125): four options, which its authors compare by likelihood.

    Args:
        kind: Questions about an ``image``, about a ``video`` by its frames, or ``both``.
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/SEED-Bench"
    own_name = "seed"
    needed = ("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "image", "data_type")

    def __init__(
        self, path: str | None = None, *, kind: Literal["image", "video", "both"] = "both", **common: Any
    ) -> None:
        super().__init__(path, **common)
        require(kind in ("image", "video", "both"), "kind", kind, "image, video, both")
        self.kind = kind

    def _parts(self) -> Iterable[int]:
        return [int(self.kind in (kind, "both")) for kind in self._rows.column("data_type")]

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        pictures = row["image"] if isinstance(row["image"], list) else [row["image"]]
        number = str(row.get("question_type_id") or "")
        known = number.isdigit() and 0 < int(number) <= len(SEED_KINDS)
        return Sample(
            str(index),
            (self._text(row, "question"),),
            tuple(self._image({"image": each}) for each in pictures),
            tuple(self._text(row, f"choice_{letter}") for letter in "abcd"),
            letter_place(row["answer"], 4),
            categories=(str(row["data_type"]), *([SEED_KINDS[int(number) - 1]] if known else [])),
        )


class MMBenchTask(ChoiceTask):
    """MMBench (Liu et al., arXiv 2307.06281): questions count if they are right in every rotation of the options.

    Rotations that are published as rows of their own (numbers above 1 000 000) are taken; others are made here.

    Args:
        circular: Ask every rotation; otherwise each question once.
        common: As for ``BenchmarkTask``. Marks are weighed, as texts alone would not rotate.
    """

    hub = "lmms-lab-encoder/MMBench"
    own_config = "en"
    own_split = "dev"
    own_name = "mmbench"
    own_weigh = "marks"
    needed = ("index", "question", "A", "B", "answer", "image")

    def __init__(self, path: str | None = None, *, circular: bool = True, **common: Any) -> None:
        super().__init__(path, **common)
        self.circular = circular
        self.rule = "circular" if circular else "choice"
        self._made = False  # rotations are made here

    def _parts(self) -> Iterable[int]:
        numbers = [int(number) for number in self._rows.column("index")]
        if not self.circular:
            return [int(number < ROTATION) for number in numbers]
        self._made = max(numbers, default=0) < ROTATION
        if not self._made:
            return [1] * len(numbers)
        columns = [self._rows.column(letter) for letter in "ABCD" if self._rows.has(letter)]
        return [sum(value not in MISSING for value in row) for row in zip(*columns, strict=True)]

    def dialogues(self) -> list[list[int]]:
        """Positions of the rotations of each question."""
        found: dict[int, list[int]] = {}
        numbers = self._rows.column("index")
        for position, (row, _) in enumerate(self._places):
            found.setdefault(int(numbers[row]) % ROTATION, []).append(position)
        return list(found.values())

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        options = [str(row[letter]).strip() for letter in "ABCD" if row.get(letter) not in MISSING]
        right = options[letter_place(row["answer"], len(options))]
        turned = (*options[part:], *options[:part])
        hint = row.get("hint")
        question = self._text(row, "question")
        number = int(row["index"])
        kinds = (row.get("category"), row.get("L2-category") or row.get("l2-category"))
        return Sample(
            f"{number}" if not self._made else f"{number}/{part}",
            (question if hint in MISSING else f"{hint}\n{question}",),
            (self._image(row),),
            turned,
            turned.index(right),
            dialogue=str(number % ROTATION) if self.circular else None,
            categories=tuple(dict.fromkeys(str(kind) for kind in kinds if kind)),
        )


def letter_place(answer: Any, count: int) -> int:
    """Position of the option that a letter names.

    Raises:
        ValueError: There is none.
    """
    letters = string.ascii_uppercase[:count]
    if str(answer).strip() not in tuple(letters):
        raise ValueError(f"the answer is {answer!r}, not one of the letters {', '.join(letters)}")
    return letters.index(str(answer).strip())
