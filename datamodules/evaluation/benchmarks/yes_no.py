"""Benchmarks of questions that are answered by yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from sparsight.evaluation.reform_eval.sample import Sample

YES_NO = ("Yes", "No")


def yes_or_no(value: Any) -> int:
    """Position among ``YES_NO`` of a right answer.

    Raises:
        ValueError: It is neither.
    """
    plain = str(value).strip().strip(".").lower()
    if plain not in ("yes", "no"):
        raise ValueError(f"the answer is {value!r}, not yes or no")
    return int(plain == "no")


class POPETask(BenchmarkTask):
    """POPE (Li et al., arXiv 2305.10355): whether an object is in the image, in three kinds of absent objects.

    Args:
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/POPE"
    own_name = "pope"
    needed = ("question", "answer", "image")
    rule = "yes_no"

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        kind = str(row.get("category") or self.split)  # each kind is a split of the configuration Full
        return Sample(
            str(index),
            (self._text(row, "question"),),
            (self._image(row),),
            YES_NO,
            yes_or_no(row["answer"]),
            categories=(kind,),
        )


class MMETask(BenchmarkTask):
    """MME (Fu et al., arXiv 2306.13394): two questions about each image, one to be answered by yes and one by no.

    The questions say themselves that they are to be answered by yes or no.

    Args:
        common: As for ``BenchmarkTask``.
    """

    hub = "lmms-lab-encoder/MME"
    own_name = "mme"
    needed = ("question_id", "category", "question", "answer", "image")
    rule = "yes_no_pairs"
    sentence = ""

    def dialogues(self) -> list[list[int]]:
        """Positions of the questions about each image."""
        pairs: dict[str, list[int]] = {}
        names = zip(self._rows.column("category"), self._rows.column("question_id"), strict=True)
        for position, name in enumerate(map(_pair, names)):
            pairs.setdefault(name, []).append(position)
        return list(pairs.values())

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        category = self._text(row, "category")
        return Sample(
            str(index),
            (self._text(row, "question"),),
            (self._image(row),),
            YES_NO,
            yes_or_no(row["answer"]),
            dialogue=_pair((category, row["question_id"])),
            categories=(category,),
        )


def _pair(name: tuple[Any, Any]) -> str:
    return f"{name[0]}/{name[1]}"
