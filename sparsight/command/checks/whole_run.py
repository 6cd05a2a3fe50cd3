"""What the ``check`` verb does: try everything that a run will do, and show what it will be trained on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from sparsight.command.checks.trial import Trial, prepare, tried
from sparsight.common.checkpoint.file import verify
from sparsight.common.labelled_grid import labelled_grid
from sparsight.lvlm.chat.show import Described
from sparsight.lvlm.export.write import processor_of
from sparsight.publish.export import export

SHOWN = 8  # images, or records
SHEET, RECORDS = "data.png", "data.txt"


def check_run(trainer: Trainer, module: LightningModule, data: LightningDataModule, *, folder: Path) -> None:
    """Open the data, take steps of every stage, validate on a batch, save, read back, export and reload.

    Args:
        trainer: As the configuration made it; its loggers and folders are not used.
        module: What would be trained.
        data: What it would be trained on.
        folder: Where the data's sheet stays; the rest is removed again.

    Raises:
        Exception: What the run would end with.
    """
    scratch = folder / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        trial = prepare(trainer, scratch)
        trainer.fit(module, datamodule=tried(data, scratch))
        if trainer.is_global_zero:
            for part, said in _told(trial, trainer, module, data, folder):
                print(f"{part:<12}{said}", flush=True)
    finally:
        if trainer.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)


def _told(
    trial: Trial, trainer: Trainer, module: LightningModule, data: LightningDataModule, folder: Path
) -> Iterator[tuple[str, str]]:
    yield "data", _show(trial.batch, data, folder)
    if trial.validated:
        yield "validation", "one batch"
    for cost in trial.costs:
        yield "training", f"{cost.name}: a step takes {cost.seconds:.2g} s"
    if all(cost.steps > 0 for cost in trial.costs):
        seconds = sum(cost.steps * cost.seconds for cost in trial.costs)
        yield "time", f"about {_in_words(seconds)} for {sum(c.steps for c in trial.costs)} steps, without validation"
    if torch.cuda.is_available():
        yield "memory", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most were allocated on the GPU"
    verify(trial.checkpoint)
    yield "checkpoint", f"{trial.checkpoint.stat().st_size / 1e6:.1f} MB, read back"
    exported = export(module, folder / "run" / "export", processor=processor_of(data), fp16=False)
    size = sum(path.stat().st_size for path in exported.rglob("*") if path.is_file())
    yield "export", f"{size / 1e6:.1f} MB, loaded again and compared"


def _show(batch: dict[str, Any], data: LightningDataModule, folder: Path) -> str:
    """Write what the model is trained on, and say where; whichever form the data has."""
    if isinstance(data, Described):
        (folder / RECORDS).write_text("\n\n".join(_described(data)) + "\n")
        return f"conversations as the model sees them in {folder / RECORDS}"
    if "image" not in batch:
        return "opened; no images to show"
    images = batch["image"][:SHOWN].float().cpu() / 2 + 0.5
    labels = batch["label"].tolist() if "label" in batch else [""] * len(images)
    labelled_grid({"": images}, [str(each) for each in batch.get("caption", labels)][: len(images)]).save(
        folder / SHEET
    )
    return f"the first images in {folder / SHEET}"


def _described(data: Described) -> Iterator[str]:
    for index in range(SHOWN):
        try:
            yield data.describe("train", index)
        except IndexError:
            return
        except ValueError as error:
            yield f"train record {index} cannot be used: {error}"


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))
