"""One run of the region study: tune an arm, and let the model answer items."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.region_arms import ARMS, STEPS, UNTUNED, arm_options
from benchmarks.region_data import Split, questions
from benchmarks.region_rows import Row, Rows, outcomes
from benchmarks.tuning_step import StepTimes
from callbacks.throughput import peak_memory_mib
from sparsight.command.cli import main as sparsight
from sparsight.evaluation.questions.task_scores import TaskScores

CONFIG = "experiment/visual_region_study"
SCORES_FILE = "scores_val.json"  # of an evaluation's items


def model_options(folder: Path) -> list[str]:
    """Options that start from a model folder."""
    return ["--model.base", str(folder), "--data.model", str(folder)]


def data_options(train: Any, val: Any) -> list[str]:
    """Other questions than the config's."""
    return ["--data.train", json.dumps(train), "--data.val", json.dumps(val), "--data.batching.length_grouping=false"]


def resumed(folder: Path) -> list[str]:
    """The option that goes on from a run's last checkpoint, if there is one."""
    found = [path for name in ("last.ckpt", "interrupted.ckpt") for path in folder.rglob(name)]
    checkpoints = sorted(found, key=lambda path: path.stat().st_mtime)
    return ["--ckpt_path", str(checkpoints[-1])] if checkpoints else []


def tuned(folder: Path) -> list[str]:
    """The option that loads what a run tuned.

    Raises:
        SystemExit: There is nothing; the start would be taken for it.
    """
    return resumed(folder) or sys.exit(f"{folder} holds no checkpoint of a finished run: remove it, and run again")


def values(weights: Mapping[str, Tensor], part: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a part, by their names."""
    return {name: tuple(value.shape) for name, value in sorted(weights.items()) if part in name}


def tune(start: Path, folder: Path, *, arm: str, rate: float, seed: int, scores: Path) -> list[str]:
    """Tune an arm; a run that was broken off goes on from its last checkpoint.

    Returns:
        Options that load what was tuned.
    """
    options = ["--config", CONFIG, *model_options(start), *arm_options(arm, rate=rate, seed=seed, scores=scores)]
    options += ["--trainer.default_root_dir", str(folder), *data_options(questions("train"), questions("rates"))]
    facts = folder / "facts.json"
    if not facts.is_file():
        clock = {"class_path": "benchmarks.tuning_step.StepTimes"}  # of the processor: work beside it does not count
        more = ["--trainer.limit_val_batches=0", "--trainer.callbacks+", json.dumps(clock)]
        cli = sparsight(["fit", *options, *more, *resumed(folder)])
        facts.write_text(json.dumps(facts_of(cli)), encoding="utf-8")
    return options


def facts_of(cli: Any) -> Row:
    """What a training run measured."""
    times = next(callback for callback in cli.trainer.callbacks if isinstance(callback, StepTimes)).seconds()
    return {
        "layers": cli.model.layers if any("layers" in stage.train for stage in cli.model.clock.stages) else [],
        "steps": STEPS,
        "precision": str(cli.trainer.precision),
        "step_seconds": round(statistics.median(times), 3) if times else None,
        "peak_memory_mib": round(peak_memory_mib()),
    }


def judge_start(rows: Rows, step: str, *, start: Path, folder: Path, split: Split, **asked: Any) -> None:
    """Let the model that all arms start from answer the items of a split, and add the row."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    nothing = arm_options("projector", rate=ARMS["projector"].rates[0], seed=0, scores=folder)
    data = data_options(questions("train"), questions(split, **asked))
    place = ["--trainer.default_root_dir", str(folder)]
    cli = sparsight(["validate", "--config", CONFIG, *model_options(start), *nothing, *place, *data])
    scores = TaskScores.load(Path(cli.trainer.log_dir, SCORES_FILE))
    facts: Row = {"arm": UNTUNED, "seed": None, "layers": [], "precision": str(cli.trainer.precision)}
    minutes = round((time.monotonic() - begin) / 60, 1)
    loss = {split: round(scores.loss(), 4)}
    rows.add(step, UNTUNED, **facts, loss=loss, right={split: outcomes(scores)}, minutes=minutes)
    shutil.rmtree(folder)


def answer(options: list[str], folder: Path, split: Split, **asked: Any) -> TaskScores:
    """Let a tuned model answer the items of a split."""
    again = [*options, "--data.val", json.dumps(questions(split, **asked)), *tuned(folder)]
    cli = sparsight(["validate", *again])
    return TaskScores.load(Path(cli.trainer.log_dir, SCORES_FILE))


def run_once(
    rows: Rows,
    step: str,
    key: str,
    *,
    start: Path,
    folder: Path,
    arm: str,
    rate: float,
    seed: int,
    splits: Mapping[Split, dict[str, Any]],
    kept: Path | None = None,
) -> None:
    """Tune, answer and add the row; checkpoints go.

    Args:
        rows: Where the row is added.
        step: File of the row.
        key: Of the row.
        start: Folder that the arm starts from.
        folder: Of the run.
        arm: What is tuned.
        rate: Learning rate.
        seed: Of order and initial adapters.
        splits: Items that are answered, and how they are asked for.
        kept: Folder where what was tuned is exported.
    """
    torch.set_num_threads(1)
    begin = time.monotonic()
    options = tune(start, folder, arm=arm, rate=rate, seed=seed, scores=rows.folder / "scores.json")
    answered = {split: answer(options, folder, split, **asked) for split, asked in splits.items()}
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    right = {split: outcomes(scores) for split, scores in answered.items()}
    loss = {split: round(scores.loss(), 4) for split, scores in answered.items()}
    minutes = round((time.monotonic() - begin) / 60, 1)
    rows.add(step, key, arm=arm, rate=rate, seed=seed, **facts, loss=loss, right=right, minutes=minutes)
    if kept is not None:
        export(options, folder, kept)
    shutil.rmtree(folder)


def export(options: list[str], folder: Path, output: Path) -> None:
    """What a run tuned, as a model folder."""
    if not output.is_dir():
        sparsight(["export", *options, *tuned(folder), "--weights=raw", "--output", str(output)])


def tune_again(start: Path, folder: Path, output: Path, *, arm: str, rate: float, seed: int, scores: Path) -> None:
    """Tune an arm whose row is there and whose model is not: on another machine, say."""
    torch.set_num_threads(1)
    export(tune(start, folder, arm=arm, rate=rate, seed=seed, scores=scores), folder, output)
    shutil.rmtree(folder)
