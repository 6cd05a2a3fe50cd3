"""Where a run is: its stage, step, time left, loss and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from torch import Tensor

from sparsight.common.errors import require
from sparsight.common.training.pace import Pace
from sparsight.common.training.stage_clock import Staged, stage_index

OTHER_PARTS = {"sanity": "first look", "val": "validate", "test": "test", "predict": "predict"}
_BETWEEN_UPDATES = 0.2  # seconds, of a terminal


class RunProgress(ProgressBar):
    """One line that tells stage, step of all steps, time left of the run, loss and samples per second.

    In a terminal the line is live; elsewhere, as in a job's log file, it is written once a minute. After each
    validation of a run another line gives what modules log for it (``prog_bar=True``).

    Attributes:
        numbers: What it tells of training beside what is logged for it, by name; read when a line is written.

    Args:
        seconds: Between lines where there is no terminal.
        console: Where to; standard output if not given.

    Raises:
        ValueError: ``seconds`` is negative.
    """

    def __init__(self, seconds: float = 60.0, console: Console | None = None) -> None:
        super().__init__()
        require(seconds >= 0, "seconds", seconds, "0 or more")
        self.seconds = seconds
        self._console = console
        self._enabled = True
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}  # by part of the run
        self._pace = Pace()
        self._steps = math.inf  # of the whole run
        self._batches = 0  # of an evaluation
        self._told = 0.0  # when the last line was written
        self.numbers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the terminal, which is of this process."""
        return self.__dict__ | {"_live": None, "_console": None, "_tasks": {}, "numbers": {}}

    @property
    def console(self) -> Console:
        """Where lines go."""
        if self._console is None:
            self._console = Console()
        return self._console

    def enable(self) -> None:
        """Tell from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Tell nothing from now on."""
        self._stop()
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        if self._enabled:
            self.console.print(*(str(each) for each in args), markup=False, highlight=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._drop("sanity")
        self._pace, self._told = Pace(), time.monotonic()
        self._steps = float(trainer.estimated_stepping_batches)
        self._show("train", *self._training(trainer, pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Tell where training is."""
        step = trainer.global_step
        self._pace.reached(step, stage=stage_index(pl_module, step - 1), now=time.monotonic())
        last = step >= self._steps
        if self._is_time(last=last):
            self._show("train", *self._training(trainer, pl_module))
        if last:
            self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last line."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches, self._told = 0, time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches, self._told = 0, time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches, self._told = 0, time.monotonic()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Tell where validation is."""
        sanity = trainer.sanity_checking
        batches = trainer.num_sanity_val_batches if sanity else trainer.num_val_batches
        self._count("sanity" if sanity else "val", batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Tell where the test is."""
        self._count("test", trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Tell where prediction is."""
        self._count("predict", trainer.num_predict_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what was found, while training; the verb ``validate`` ends with a table."""
        self._drop("val")
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if found := _in_words(_logged(trainer, validation=True)):
            self.print(f"step {trainer.global_step}, validated: {found}")

    def _training(self, trainer: Trainer, module: LightningModule) -> tuple[str, int, float, str]:
        """What is done, steps, steps in all, and what else there is to tell."""
        count = len(module.clock.stages) if isinstance(module, Staged) else 1
        stage = stage_index(module, max(trainer.global_step - 1, 0))  # of the step that was taken
        what = "train" if count == 1 else f"stage {stage + 1} of {count}"
        left = self._pace.left(self._steps)
        told = "" if left is None else f"{timedelta(seconds=round(left))} left"
        rest = ", ".join(filter(None, [told, _in_words(self.numbers | _logged(trainer))]))
        return what, trainer.global_step, self._steps, rest

    def _count(self, part: str, batches: Any) -> None:
        self._batches += 1
        total = sum(batches) if isinstance(batches, list) else batches
        if self._is_time(last=False):
            self._show(part, OTHER_PARTS[part], self._batches, total, "")

    def _is_time(self, *, last: bool) -> bool:
        if not self._enabled:
            return False
        between = _BETWEEN_UPDATES if self.console.is_terminal else self.seconds
        now = time.monotonic()
        if now - self._told < between and not last:
            return False
        self._told = now
        return True

    def _show(self, part: str, what: str, done: float, total: float, rest: str) -> None:
        if not self._enabled:
            return
        of_total = f"{done:.0f}" if math.isinf(total) else f"{done:.0f}/{total:.0f}"
        if not self.console.is_terminal:
            if done:
                self.print(
                    ", ".join(filter(None, [f"{what}, {'step' if part == 'train' else 'batch'} {of_total}", rest]))
                )
            return
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
                TextColumn("{task.fields[of_total]}"),
                TextColumn("{task.fields[rest]}", table_column=Column(overflow="ellipsis", no_wrap=True)),
                console=self.console,
                expand=True,
                auto_refresh=False,
            )
            self._live.start()
        shown: dict[str, Any] = {
            "description": what,
            "completed": done,
            "total": None if math.isinf(total) else total,
            "of_total": of_total,
            "rest": rest,
        }
        if part in self._tasks:
            self._live.update(self._tasks[part], **shown)
        else:
            self._tasks[part] = self._live.add_task(**shown)
        self._live.refresh()

    def _drop(self, part: str) -> None:
        if self._live is not None and part in self._tasks:
            self._live.remove_task(self._tasks.pop(part))
            if not self._tasks:
                self._stop()

    def _stop(self) -> None:
        """End the live line, which stays as it is, without parts of a validation that was broken off."""
        if self._live is not None:
            for part in self._tasks.keys() - {"train"}:
                self._live.remove_task(self._tasks[part])
            self._live.stop()
        self._live, self._tasks = None, {}


def tell(module: LightningModule, name: str, value: Any) -> None:
    """Tell a number of training beside the bar.

    Lightning reads what is logged for a bar in every step, which waits for the device; ``RunProgress`` reads it when it
    writes a line.
    """
    trainer = module._trainer
    bar = None if trainer is None else trainer.progress_bar_callback  # a step by hand has no trainer
    if isinstance(bar, RunProgress):
        bar.numbers[name] = value
    elif bar is not None:
        module.log(name, value, prog_bar=True, logger=False)


def log_together(module: LightningModule, names: Sequence[str], values_N: Tensor) -> None:
    """Give all loggers a vector of numbers under their names, at the steps at which Lightning logs.

    Lightning would keep an object for each in every step, and read each by itself; here is one wait, then.

    Args:
        module: In a training step.
        names: N names.
        values_N: This process's numbers; that of rank zero logs.
    """
    trainer = module._trainer
    if trainer is None or not trainer.loggers or trainer.fit_loop._should_accumulate():
        return
    if not trainer._logger_connector.should_update_logs:
        return
    numbers = dict(zip(names, values_N.tolist(), strict=True))
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _logged(trainer: Trainer, *, validation: bool = False) -> dict[str, Any]:
    """What modules log for the line."""
    return {
        name.removeprefix("train/").removeprefix("val/"): value
        for name, value in trainer.progress_bar_metrics.items()
        if name.startswith("val/") == validation
    }


def _in_words(metrics: Mapping[str, Any]) -> str:
    """Names and values, in three digits."""
    return ", ".join(f"{name} {float(value):.3g}" for name, value in metrics.items())
