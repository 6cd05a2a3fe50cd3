"""The memory estimate of a run that a trainer is about to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sparsight.common.measure.memory_table import MemoryEstimate
from sparsight.diffusion.measure.memory_estimate import estimate_memory


def run_memory(
    module: Any, *, objectives: Iterable[str], optimizer: Callable[..., torch.optim.Optimizer]
) -> MemoryEstimate:
    """Estimate for a DiffusionModule that has a trainer; needs neither data nor anything on the device.

    The datamodule's ``batch_shape(model)`` tells samples a batch, height and width in model space. Where there is none,
    one sample of the size that the model was made for is counted.

    Args:
        module: Has not begun to train.
        objectives: As for :func:`estimate_memory`.
        optimizer: Called as ``optimizer(parameters, learning_rate)``.
    """
    trainer, model = module.trainer, module.diffusion
    shape = getattr(trainer.datamodule, "batch_shape", None)
    batch, *size = (1, *model.sample_shape()[1:]) if shape is None else shape(model)
    return estimate_memory(
        module.denoiser,
        objectives=objectives,
        batch=batch,
        size=tuple(size),
        optimizer=optimizer,
        averaged=any(type(callback).__name__ == "TrainableEMA" for callback in trainer.callbacks),
        others={name: part for name, part in model.pipeline.components.items() if _is_other(module, part)},
        autocast=trainer.precision_plugin.forward_context,
        device=trainer.strategy.root_device,
    )


def _is_other(module: Any, part: Any) -> bool:
    return isinstance(part, nn.Module) and part is not module.denoiser
