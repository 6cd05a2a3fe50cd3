"""Numbers by site, beside what Lightning logs: it reads each by itself, and keeps an object for each in every step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch import Tensor


def log_together(module: LightningModule, names: Sequence[str], values_N: Tensor) -> None:
    """Give all loggers a vector of numbers under their names, at the steps at which Lightning logs; one wait, then.

    Args:
        module: In a training step.
        names: N names.
        values_N: This process's numbers; that of rank zero logs.
    """
    trainer = module.trainer
    if not trainer.loggers or trainer.fit_loop._should_accumulate():
        return
    if not trainer._logger_connector.should_update_logs:
        return
    numbers = dict(zip(names, values_N.tolist(), strict=True))
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
