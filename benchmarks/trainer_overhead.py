"""What the Trainer costs: layer-wise steps through it, callbacks and logging included, against a loop by hand.

    python -m benchmarks.trainer_overhead --output runs/trainer_overhead

The loop by hand reads the same batches, draws the same noise and takes the same fused optimiser's steps. Both take
turns, and processor time of one thread is counted, so that other work on the machine disturbs little. The teacher is a
DiT of random weights with as many sites as SDXL has; a step of it takes about a second, so that the share says what a
step of that length pays; the difference in milliseconds holds for shorter ones.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

from benchmarks.training_step import save_teacher
from blocks import DeltaConvBlock
from callbacks import Throughput
from datamodules import FolderRecords, ImageDataModule, TransformOptions
from lightning_modules import AttentionDistillation
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text
from sparsight.diffusion.train.stages import Stage
from sparsight.diffusion.train.trained_parts import TrainedParts

UNTIMED = 2  # steps that announce and allocate
TARGET = 1.02  # at 70 sites


def save_images(folder: Path, count: int) -> Path:
    """Grey images of random pixels, in folders by class."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


class Distillation:
    """Module and batches of both loops."""

    def __init__(self, teacher: str, images: Path, batch: int) -> None:
        self.teacher, self.images, self.batch = teacher, images, batch

    def module(self) -> AttentionDistillation:
        """A fresh one."""
        optimizer: Any = partial(torch.optim.AdamW, fused=True)
        stages = [Stage("layerwise", 10_000)]
        return AttentionDistillation(
            self.teacher, DeltaConvBlock, stages, optimizer=optimizer, trained=TrainedParts(init_samples=0)
        )

    def data(self) -> ImageDataModule:
        """Fresh, with its own order of the images."""
        return ImageDataModule(
            FolderRecords(self.images), image_size=32, transform=TransformOptions(channels=1), batch_size=self.batch
        )


class StepTimes(Callback):
    """Processor time from one batch's start to the next one's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.times.append(time.process_time())


def _seconds(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)][UNTIMED:]


def by_hand(task: Distillation, steps: int) -> list[float]:
    """Seconds of each step as one would write it."""
    module, data = task.module().train(), task.data()
    data.setup("fit")
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-4, fused=True)
    times = []
    for number, batch in enumerate(itertools.islice(data.train_dataloader(), steps)):
        times.append(time.process_time())
        noised = module.noised(batch, step=number, condition_dropout=0.0)
        module.distiller.layerwise(noised)["site"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return _seconds(times)


def by_trainer(task: Distillation, steps: int, folder: str) -> list[float]:
    """Seconds of each step through the Trainer, with a logger and the callback that recipes have."""
    clock = StepTimes()
    options: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    made = SparsightTrainer(max_steps=steps, callbacks=[clock, Throughput()], **options)
    made.fit(task.module(), datamodule=task.data())
    return _seconds(clock.times)


def main() -> int:
    """Measure, print and write; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=70)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--loops", type=int, default=3, help="runs of each loop, in turn")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run of a loop")
    parser.add_argument("--output", type=Path, default=Path("runs/trainer_overhead"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"by hand": [], "by the Trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        images = save_images(Path(folder, "images"), arguments.batch * arguments.steps)
        task = Distillation(save_teacher(f"{folder}/teacher", layers=arguments.sites), images, arguments.batch)
        for _ in range(arguments.loops):
            seconds["by hand"] += by_hand(task, arguments.steps)
            seconds["by the Trainer"] += by_trainer(task, arguments.steps, folder)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = medians["by the Trainer"] / medians["by hand"]
    facts = {"environment": environment(torch.device("cpu")), "sites": arguments.sites, "batch": arguments.batch}
    write_text(arguments.output / "trainer_overhead.json", json_text(facts | {"seconds": seconds, "ratio": ratio}))
    added = 1000 * (medians["by the Trainer"] - medians["by hand"])
    print(f"{arguments.sites} sites, batch {arguments.batch}: {1000 * medians['by hand']:.0f} ms a step by hand")
    print(f"the Trainer takes {ratio:.3f} times that, {added:.1f} ms more (target {TARGET})")
    return int(ratio > TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
