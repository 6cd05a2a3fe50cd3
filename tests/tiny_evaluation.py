"""Small evaluations: tasks that ask which of four greys an image has or what its number is, and their reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image

from callbacks import ReformEvalReport
from datamodules import ReformEvalDataModule
from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.records import CorruptRecord, digest
from lightning_modules import LVLMEvaluation
from sparsight.evaluation.reform_eval.report import read_report, write_report
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.evaluation.reform_eval.scores import scores_of

GREYS = ("black", "dark", "light", "white")


class GreyTask(EvaluationTask):
    """Pictures of one grey each; the others are wrong options.

    Args:
        name: Of the task.
        dimension: Of the taxonomy.
        formulation: Choose, or write the grey's name.
        count: Number of samples.
        broken: Position of one that cannot be used.
        pictures: Whether there are images; otherwise the question names the number.
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


BOTH: dict[str, Any] = {"methods": ["likelihood", "generation"], "new_tokens": 6}


def suite(**options: Any) -> list[Any]:
    return [
        GreyTask(**options),
        GreyTask("words", "scene_text", "OCROpenEnded", count=5),
        GreyTask("captions", "description", "Generation", count=4),
        GreyTask("facts", "text_only", count=4, pictures=False),
    ]


def evaluate(
    model: Path,
    folder: Path,
    *,
    tasks: list[Any] | None = None,
    resamples: int = 100,
    limit: int | None = None,
    limit_samples: int | None = None,
    **data: Any,
) -> Path:
    """Run an evaluation; the folder of its report."""
    callback = ReformEvalReport(str(folder), resamples=resamples)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[callback],
        default_root_dir=str(folder.parent),
        limit_test_batches=limit,
    )
    options = {"batch_size": 3, "limit": limit_samples, "protocol": BOTH, **data}
    trainer.test(LVLMEvaluation(str(model)), ReformEvalDataModule(tasks or suite(), **options), verbose=False)
    return folder


def scores(folder: Path) -> dict[tuple[str, ...], Any]:
    listed = read_report(folder)["scores"]
    return {(s["method"], s["level"], s["name"], s["metric"]): s["value"] for s in listed}


TASK = {"name": "talk", "dimension": "dialogue", "formulation": "SingleChoice"}


def weighed(sample: str, *, right: bool, run: int = 0, **more: Any) -> dict[str, Any]:
    choice = int(not right)
    asked = {"method": "likelihood", "task": "talk", "sample": sample, "run": run, "options": ["a", "b"], "answer": 0}
    return asked | {"choice": choice, "choice_by_token": choice} | more


def report(folder: Path, right: Sequence[bool], *, turns: int = 1) -> Path:
    """The report of a model that is right or wrong in these samples."""
    tasks = [TASK | {"samples": len(right)}]
    talks = [{"turn": n % turns, "dialogue": str(n // turns)} if turns > 1 else {} for n in range(len(right))]
    answers = [weighed(str(n), right=each, **talks[n]) for n, each in enumerate(right)]
    about: dict[str, Any] = {"model": {"name": folder.name}, "tasks": tasks, "protocol": {"runs": 1, "seed": 0}}
    extra = {"complete": True, "environment": {"date": "2026-01-01"}}
    scores = scores_of(answers, tasks, resamples=200)
    write_report(folder, about=about, extra=extra, answers=answers, scores=scores)
    return folder
