"""A run that is stopped saves a checkpoint first: on Ctrl-C, SIGTERM and exceptions, between two optimiser steps.

One that ends by itself between two saves leaves its end as ``last``.

Parameters, optimiser and averages change only within an optimiser step. The loops' positions at its end are kept, so
that what is saved later, from the middle of the next batch or of a validation, is the state at that end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sparsight.common.checkpoint.find import InFolder, folders_of
from sparsight.common.checkpoint.last import renew_last
from sparsight.common.disk.files import sweep
from sparsight.common.errors import CheckpointError, chain

NAME = "interrupted.ckpt"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGREE_SECONDS = 20
TOGETHER_SECONDS = 0.5  # a launcher may send again what the terminal has sent to all processes


class Stopped(SystemExit):
    """A signal has ended training; the exit code is that of a process ended by it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class SaveWhenStopped(Checkpoint):
    """Saves ``interrupted.ckpt`` before a run ends early, and says how to go on.

    In one process a signal ends training at once outside of training steps and at their end otherwise; several
    processes end together after the step in which the first was told, and save if all agree within 20 seconds. Nothing
    is saved after numbers that are not finite, in the middle of an optimiser step, or where ModelCheckpoint is off.

    SLURM's signal for its queue stays Lightning's, which saves and asks for the job again, but waits for the end of the
    step, on all processes alike.

    Args:
        how_to_go_on: Makes the line that resumes from a checkpoint.
    """

    def __init__(self, how_to_go_on: Callable[[Path], str]) -> None:
        self.how_to_go_on = how_to_go_on
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._loops: dict[str, Any] | None = None  # at the last boundary
        self._step = -1
        self._in_step = False  # between boundaries
        self._changing = False  # an optimiser step is being taken
        self._saving = False
        self._number: int | None = None  # the signal that came
        self._requeue: int | None = None  # the signal of SLURM's queue
        self._since = 0.0

    def tried(self, folder: Path) -> None:
        """A trial is no run that one goes on with."""
        self._alone = True
        self._requeued = False  # SLURM has asked to save and to end

    # -- boundaries --------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what killed processes left half written, and finish what they left out."""
        if trainer.is_global_zero:
            for folder in folders_of(trainer):
                sweep(folder)
            renew_last(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals from here on."""
        self._loops, self._step, self._in_step, self._changing = None, trainer.global_step, False, False
        self._number, self._alone = None, trainer.world_size == 1
        if not self._alone and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
            self._requeued, self._requeue = False, requeue_signal(trainer)
            if self._requeue is not None and callable(signal.getsignal(self._requeue)):
                self._handlers[self._requeue] = signal.signal(self._requeue, self._note_requeue)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A signal now waits for the next boundary."""
        self._in_step = True

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Until the boundary the state is neither that of one step nor of the next."""
        self._changing = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the position after an optimiser step, and end here if a signal came."""
        if trainer.global_step == self._step:  # accumulating
            return
        self._step = trainer.global_step
        self._loops = deepcopy(trainer.fit_loop.state_dict())
        self._in_step = self._changing = False
        if self._group is not None:
            told = torch.tensor([self._number or 0, int(self._requeued)])
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
            self._number, self._requeued = int(told[0]) or None, bool(told[1])
        if self._requeued and self._requeue is not None:
            self._requeued = False
            self._handlers[self._requeue](self._requeue, None)
        if self._number is not None:
            raise Stopped(self._number)

    def _note_requeue(self, number: int, frame: FrameType | None) -> None:
        """Lightning would save at once: half of a step, or averages that stand in the weights' place."""
        self._requeued = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What is saved here stands at the last boundary."""
        if self._saving:
            checkpoint["loops"]["fit_loop"] = self._loops

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``last`` be the end of the run, where that lies between two saves, and leave signals to others again."""
        for saver in _savers(trainer) if self._loops is not None and _keeps_checkpoints(trainer) else []:
            if saver.save_last is True and 0 < saver._last_global_step_saved < self._step:
                with self._at_boundary():
                    saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
        self._listen_no_more()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            if number == signal.SIGINT and time.monotonic() - self._since > TOGETHER_SECONDS:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return
        self._number, self._since = number, time.monotonic()
        again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        rank_zero_info(f"{signal.Signals(number).name}: ending after this step, with a checkpoint{again}")
        if self._alone:
            if number == signal.SIGINT:  # also while a computation does not let Python in
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            if not self._in_step:
                raise Stopped(number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, unless the state is not to be trained on, and say how to go on."""
        if self._loops is None or not _keeps_checkpoints(trainer):
            self._listen_no_more()
            return
        reason = self._why_not(exception)
        if self._group is not None and not self._agreed(reason):
            reason = reason or f"the processes did not agree on a step within {AGREE_SECONDS} s"
        if reason is None:
            reason = self._save(trainer)
        if reason is not None:
            rank_zero_warn(f"no checkpoint is saved on this end: {reason}; `fit --resume true` takes the last one")
        self._listen_no_more()

    def _why_not(self, exception: BaseException) -> str | None:
        if _is_or_stems_from(exception, FloatingPointError):
            return "the state may hold numbers that are not finite"
        if _is_or_stems_from(exception, CheckpointError):
            return "checkpoints cannot be written"
        return "an optimiser step was under way" if self._changing else None

    def _save(self, trainer: Trainer) -> str | None:
        path = _folder(trainer) / NAME
        try:
            with self._at_boundary():
                trainer.save_checkpoint(path)
            trainer.strategy.checkpoint_io.teardown()  # waits for one that is written in a thread
        except Exception as error:  # the exception that ends the run matters more
            return (str(error).splitlines() or [type(error).__name__])[0]
        rank_zero_info(f"saved step {self._step} in {path}; to go on:\n  {self.how_to_go_on(path)}")
        return None

    @contextmanager
    def _at_boundary(self) -> Iterator[None]:
        """Save the loops as they stood at the last boundary."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _agreed(self, reason: str | None) -> bool:
        """Whether all processes stand at the same boundary and may save."""
        try:
            dist.monitored_barrier(self._group, timeout=timedelta(seconds=AGREE_SECONDS))
            found: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(found, (self._step, reason is None), group=self._group)
        except Exception:  # a process is gone, or busy elsewhere
            return False
        return all(one == (self._step, True) for one in found)

    def _listen_no_more(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        self._handlers = {}


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal on which Lightning saves and puts a job of SLURM into its queue again; none outside of SLURM."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal or signal.SIGUSR1


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _keeps_checkpoints(trainer: Trainer) -> bool:
    return bool(_savers(trainer)) and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _folder(trainer: Trainer) -> Path:
    """Where the run's own checkpoints are."""
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, InFolder)]
    return Path(next((folder for folder in folders if folder), Path(trainer.default_root_dir, "checkpoints")))


def _is_or_stems_from(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(each, kind) for each in chain(error))
