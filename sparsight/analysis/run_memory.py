"""The memory estimate of a run that a trainer is about to begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import nn

from sparsight.analysis.memory_estimate import estimate_memory
from sparsight.analysis.memory_table import MemoryEstimate
from sparsight.sharding import is_sharded


@rank_zero_only
def announce_memory(trainer: Trainer, model: nn.Module, estimate: Callable[[], MemoryEstimate]) -> None:
    """Tell what training takes of its device, and warn if that is more than the device has.

    Nothing is told where the trainer was asked for no model summary either, or where parameters are split over
    processes, which is not estimated.

    Args:
        trainer: The run's.
        model: What is trained, with its frozen rest.
        estimate: Makes the estimate, if it is wanted.
    """
    wanted = any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if not wanted or is_sharded(model):
        return
    found = estimate()
    rank_zero_info(f"Estimated memory:\n{found.text()}")
    if found.too_much:
        rank_zero_warn(found.too_much)


def run_memory(module: Any, batch: Mapping[str, Any]) -> MemoryEstimate:
    """Estimate for an AttentionDistillation that has a trainer and whose batches look like ``batch``."""
    pixels = "image" in batch
    sample = batch["image"] if pixels else batch["sample"] if "sample" in batch else batch["xt"]
    cell = module.diffusion.pixels_per_cell if pixels else 1
    height, width = sample.shape[-2:]
    return estimate_memory(
        module.denoiser,
        objectives={stage.objective for stage in module.clock.stages},
        batch=len(sample),
        size=(height // cell, width // cell),
        optimizer=module.optimizer,
        averaged=any(type(callback).__name__ == "TrainableEMA" for callback in module.trainer.callbacks),
        others={name: part for name, part in module.diffusion.pipeline.components.items() if _is_other(module, part)},
        autocast=module.trainer.precision_plugin.forward_context,
        device=module.device,
    )


def _is_other(module: Any, part: Any) -> bool:
    return isinstance(part, nn.Module) and part is not module.denoiser
