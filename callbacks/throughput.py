"""How fast training goes and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.ema import TrainableEMA
from callbacks.export import ExportAtEnd
from sparsight.common.measure.run_cost import Estimated, disk_bytes, whole_run
from sparsight.common.training.progress.pace import Pace
from sparsight.common.training.progress.tell import tell
from sparsight.common.training.sharding import is_sharded
from sparsight.common.training.stage_clock import Staged, stage_index

MEBIBYTE = 2**20
FORESEEN = 20  # steps after which the whole run's cost is told


@runtime_checkable
class Predicting(Protocol):
    """A module that says what its steps should cost."""

    predicted_share: float | None
    """FLOPs of a step over those of one that trains all layers; none before that is known."""


@runtime_checkable
class Waiting(Protocol):
    """A loader that says how long it was waited for, in seconds; those of ``datamodules`` do."""

    waited: float


class Throughput(Callback):
    """Logs samples per second over all processes, peak memory in MiB and the share of waiting, at every logging step.

    After 20 steps it says what the whole run will take: time, at the pace of these steps, disk, and the peak of memory
    beside what was estimated.

    At the end of every stage of a module, and of training, it says the median time of a step between logging steps, the
    share of FLOPs that the module predicted for it (``predicted_share``) if it did, and the peak memory so far.

    Peak memory is what the allocator of the GPU reached, or the resident set of the process on a CPU.

    ``train/data_wait_share`` is the share of the time since the last logging step, 0 to 1, that a process stood still
    until its loader had the next batch, averaged over processes; moving batches to the device, validation and callbacks
    are not in it. The loaders of ``datamodules`` measure it, as nothing else can tell fetching from what Lightning does
    between two batches; with other loaders it is not logged.
    """

    _told = False  # what the whole run takes

    def tried(self, folder: Path) -> None:
        """Nothing: a trial measures its few steps itself."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._seconds_a_step: list[float] = []
        self._pace, self._started = Pace(), (trainer.global_step, time.perf_counter())
        self._logged_step = trainer.global_step
        self._stage = stage_index(pl_module, trainer.global_step)
        self._restart(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was measured."""
        self._tell(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count samples, and log when Lightning does."""
        self._samples += len(batch["index"]) * trainer.world_size
        self._batches += 1
        stage = stage_index(pl_module, trainer.global_step)
        self._foresee(trainer, pl_module)
        # with accumulated gradients several batches end at one step, the first of them when it is logged
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        between = trainer.global_step % every and stage == self._stage
        if between or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        seconds = time.perf_counter() - self._begin
        speed = self._samples / seconds
        self._seconds_a_step.append(seconds / self._batches * trainer.accumulate_grad_batches)
        tell(pl_module, "samples/s", speed)
        pl_module.log_dict({"train/samples_per_second": speed, "train/peak_memory_mib": peak_memory_mib()})
        waited = seconds_waited(trainer)
        if waited is not None and self._waited is not None:
            pl_module.log("train/data_wait_share", (waited - self._waited) / seconds, sync_dist=True)
        if stage != self._stage:
            self._tell(pl_module)
            self._stage, self._seconds_a_step = stage, []
        self._restart(trainer)

    def _foresee(self, trainer: Trainer, module: LightningModule) -> None:
        """Say once what the whole run will take."""
        step, (first, began) = trainer.global_step, self._started
        if self._told or step - first > FORESEEN:
            return
        now = time.perf_counter()
        self._pace.reached(step, stage=stage_index(module, step - 1), now=now)
        if step - first < FORESEEN:
            return
        self._told = True
        steps = float(trainer.estimated_stepping_batches)
        left = self._pace.left(steps)
        if not trainer.is_global_zero or is_sharded(module) or (left is not None and steps <= step):
            return
        disk = disk_bytes(
            trainer,
            module,
            averaged=next((each.average for each in trainer.callbacks if isinstance(each, TrainableEMA)), {}),  # type: ignore[attr-defined]
            exported=any(isinstance(each, ExportAtEnd) for each in trainer.callbacks),  # type: ignore[attr-defined]
        )
        said = whole_run(
            None if left is None else now - began + left,
            steps=steps - first,
            disk=disk,
            folder=Path(trainer.default_root_dir),
            peak_mib=peak_memory_mib(),
            of_process=not torch.cuda.is_available(),
        )
        known = module.estimated_bytes if isinstance(module, Estimated) else None
        estimated = "" if known is None else f", {known / MEBIBYTE:,.0f} MiB were estimated for model and training"
        rank_zero_info(f"the whole run: {said}{estimated}")

    def _tell(self, module: Any) -> None:
        if not self._seconds_a_step:
            return
        count = len(module.clock.stages) if isinstance(module, Staged) else 1
        share = module.predicted_share if isinstance(module, Predicting) else None
        which = "" if count == 1 else f"stage {self._stage + 1} of {count}, "
        predicted = "" if share is None else f" (predicted: {share:.1%} of the FLOPs of training all layers)"
        rank_zero_info(
            f"{which}measured: {median(self._seconds_a_step):.3g} s a step{predicted}, "
            f"peak memory {peak_memory_mib():,.0f} MiB"
        )

    def _restart(self, trainer: Trainer) -> None:
        self._begin, self._samples, self._batches = time.perf_counter(), 0, 0
        self._waited = seconds_waited(trainer)


def seconds_waited(trainer: Trainer) -> float | None:
    """Seconds that this process has waited for training batches so far, if its loader tells."""
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, Waiting) else None


def peak_memory_mib() -> float:
    """Peak memory of this process so far, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024  # bytes on macOS, KiB elsewhere
