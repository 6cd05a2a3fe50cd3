"""Telling what training takes of its device before it begins."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from sparsight.common.measure.memory_table import MemoryEstimate


@rank_zero_only
def announce_memory(trainer: Trainer, estimate: Callable[[], MemoryEstimate]) -> int | None:
    """Tell what training takes of its device, and warn if that is more than the device has.

    Nothing is told where the trainer was asked for no model summary either, or where parameters are split over
    processes, which is not estimated.

    Args:
        trainer: The run's.
        estimate: Makes the estimate, if it is wanted.

    Returns:
        Bytes that were told.
    """
    wanted = any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if not wanted or isinstance(trainer.strategy, ModelParallelStrategy):
        return None
    found = estimate()
    rank_zero_info(f"Estimated memory:\n{found.text()}")
    if found.too_much:
        rank_zero_warn(found.too_much)
    return found.total
