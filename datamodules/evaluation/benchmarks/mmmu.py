"""MMMU: questions of college subjects, most of them with options."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import BRIEFLY, LETTER, BenchmarkTask
from datamodules.evaluation.benchmarks.choice import letter_place
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.reform_eval.sample import Sample

_PLACE = re.compile(r"<image (\d+)>")
_SUBJECT = re.compile(r"^[^_]+_(.+)_\d+$")


class MMMUTask(BenchmarkTask):
    """MMMU (Yue et al., arXiv 2311.16502): up to seven images a question, which question and options name by number.

    All images come first; marks are weighed, as options may be images. Questions without options are scored by what
    their answer concludes.

    Args:
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/MMMU"
    own_split = "validation"
    own_name = "mmmu"
    needed = ("id", "question", "options", "answer", "question_type", "image_1")
    own_weigh = "marks"
    lists_options = True
    sentence = LETTER
    rule = "choice_or_open"

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        listed = [str(option) for option in _listed(row["options"])]
        question = self._text(row, "question")
        is_choice = row["question_type"] == "multiple-choice"
        said = " ".join([question, *listed])
        numbers = sorted({int(number) for number in _PLACE.findall(said)}) or [1]
        images = tuple(self._image(row, f"image_{number}") for number in numbers if f"image_{number}" in row)
        references: tuple[str, ...] = ()
        if is_choice:
            options, answer = tuple(listed), letter_place(row["answer"], len(listed))
        else:
            references = tuple(self._answers_of(row["answer"]))
            options, answer = self._weighed_beside(references[0], references, index)
        subject = _SUBJECT.match(str(row["id"]))
        return Sample(
            str(row["id"]),
            (question,),
            images,
            options,
            answer,
            references=references,
            categories=(subject[1],) if subject else (),
        )

    def _answers_of(self, value: Any) -> list[str]:
        """Accepted answers of an open question."""
        answers = [str(each).strip() for each in _listed(value)] if str(value).startswith("[") else [str(value).strip()]
        return [text for text in answers if text]

    def _pooled(self, value: Any) -> list[str]:
        """Of an open question the first answer; that of a choice is a letter."""
        return [text for text in self._answers_of(value)[:1] if len(text) > 1 or text.isdigit()]

    def _sentence(self, sample: Sample, instruction: str, method: Method) -> str:
        return BRIEFLY if sample.references and instruction in (LETTER, "") else instruction


def _listed(value: Any) -> list[Any]:
    """A list, which MMMU publishes as its text in Python.

    Raises:
        ValueError: It is neither.
    """
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{value!r} is no list of texts") from error
    if not isinstance(found, list):
        raise ValueError(f"{value!r} is no list of texts")
    return found
