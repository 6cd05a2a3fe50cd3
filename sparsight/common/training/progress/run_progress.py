"""Where a run is: its stage, step, time left, loss and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from sparsight.common.errors import require
from sparsight.common.training.progress.line import ProgressLine
from sparsight.common.training.progress.pace import Pace
from sparsight.common.training.stage_clock import Staged, stage_index

OTHER_PARTS = {"sanity": "first look", "val": "validate", "test": "test", "predict": "predict"}


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
        self._line = ProgressLine(seconds, console)
        self._pace = Pace()
        self._steps = math.inf  # of the whole run
        self._batches = 0  # of an evaluation
        self.numbers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without numbers, which may lie on a device of this process."""
        return self.__dict__ | {"numbers": {}}

    @property
    def console(self) -> Console:
        """Where lines go."""
        return self._line.console

    def enable(self) -> None:
        """Tell from now on."""
        self._line.enabled = True

    def disable(self) -> None:
        """Tell nothing from now on."""
        self._line.stop()
        self._line.enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._line.print(*args)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._line.drop("sanity")
        self._pace = Pace()
        self._line.begin()
        self._steps = float(trainer.estimated_stepping_batches)
        self._line.show("train", *self._training(trainer, pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Tell where training is."""
        step = trainer.global_step
        self._pace.reached(step, stage=stage_index(pl_module, step - 1), now=time.monotonic())
        last = step >= self._steps
        if self._line.is_time(last=last):
            self._line.show("train", *self._training(trainer, pl_module))
        if last:
            self._line.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last line."""
        self._line.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._line.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._line.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches = 0
        self._line.begin()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches = 0
        self._line.begin()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._batches = 0
        self._line.begin()

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
        self._line.drop("val")
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
        if self._line.is_time(last=False):
            self._line.show(part, OTHER_PARTS[part], self._batches, total, "")


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
