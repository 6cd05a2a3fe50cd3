"""A run that is only tried: a few steps of every stage, and what would take long left out or made small."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger

from sparsight.common.training.stage_clock import StageClock, Staged, stage_index

STEPS = 3  # of every stage: the first one makes ready what the others find, and says nothing of the time


@runtime_checkable
class Tried(Protocol):
    """Data or a callback that would make too much for a trial."""

    def tried(self, folder: Path) -> Any:
        """What takes its place in a trial that may write into ``folder``, or ``None`` if nothing does."""
        ...


@dataclass(frozen=True)
class StageCost:
    """What a stage took.

    Attributes:
        name: Number and objective.
        steps: Of the whole run.
        seconds: Of its last step that was tried; where data that were cut short have too few batches for it, as
            many times longer as it would be.
    """

    name: str
    steps: int
    seconds: float


class Trial(Callback):
    """Takes a few optimiser steps of every stage, with the schedules as far as they would be, and ends the run.

    Args:
        checkpoint: File that is saved after the last step.

    Attributes:
        batch: The first training batch.
        costs: Of the stages, in their order.
        validated: Whether a batch was validated on before.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.batch: dict[str, Any] = {}
        self.costs: list[StageCost] = []
        self.validated = False
        self._taken = 0  # steps of this stage
        self._done = 0  # the trainer's step when the last one ended
        self._began: float | None = None
        self._batches = 0  # of the step so far

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is something to validate on."""
        self.validated = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has had its batch before; none comes in between."""
        trainer.limit_val_batches = 0
        self._done = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch, and when a step begins."""
        self.batch = self.batch or batch
        self._began = time.perf_counter() if self._began is None else self._began

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Go on to the next stage when this one was tried, and end after the last."""
        step = trainer.global_step
        self._batches += 1
        if step == self._done or self._began is None:  # gradients are accumulated
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, self._began = time.perf_counter() - self._began, None
        seconds, self._batches = seconds / self._batches * trainer.accumulate_grad_batches, 0
        clock = pl_module.clock if isinstance(pl_module, Staged) else None
        index = stage_index(pl_module, step - 1)
        self._done, self._taken = step, self._taken + 1
        steps = trainer.max_steps if clock is None else clock.stages[index].steps
        if self._taken < STEPS and (steps < 0 or self._taken < steps):
            return
        self.costs.append(StageCost(_name(clock, index), steps, seconds))
        self._taken = 0
        if clock is None or index == len(clock.stages) - 1:
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            trainer.fit_loop.epoch_loop.max_steps = step
        else:
            self._done = clock.ends[index]
            optimizers = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
            optimizers.step.total.completed = self._done


def prepare(trainer: Trainer, folder: Path) -> Trial:
    """Make a trainer try its run and write nothing outside a folder.

    Args:
        trainer: Before its first run.
        folder: Where it may write.

    Returns:
        The callback that ends the run.
    """
    trial = Trial(folder / "checkpoint.ckpt")
    stand_ins = (tried(each, folder) for each in trainer.callbacks)  # type: ignore[attr-defined]
    kept = [each for each in stand_ins if each is not None and not isinstance(each, ProgressBar)]
    for callback in kept:
        if isinstance(callback, ModelCheckpoint):
            callback.dirpath = str(folder / "checkpoints")
    trainer.callbacks = [trial, *kept]  # type: ignore[attr-defined]
    trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]  # set by a connector
    trainer.loggers = [CSVLogger(folder)]
    trainer.num_sanity_val_steps = 1
    trainer.log_every_n_steps = 1  # type: ignore[attr-defined]  # else Lightning warns of how few batches there are
    return trial


def tried(part: Any, folder: Path) -> Any:
    """What stands for data or a callback in a trial: itself, unless it says otherwise."""
    return part.tried(folder) if isinstance(part, Tried) else part


def _name(clock: StageClock[Any] | None, index: int) -> str:
    return "training" if clock is None else f"stage {index + 1} of {len(clock.stages)}, {clock.stages[index].objective}"
