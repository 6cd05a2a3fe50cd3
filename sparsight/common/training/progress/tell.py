"""Numbers of training for the line and for loggers, none of which waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from sparsight.common.training.progress.run_progress import RunProgress


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
