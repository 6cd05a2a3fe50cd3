"""The memory estimate of a run that a trainer is about to begin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from sparsight.common.datamodule import datamodule_of
from sparsight.common.measure.memory_table import MemoryEstimate
from sparsight.common.training.averaging import averaging
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.model.caption_memory import KnowsCaptions
from sparsight.diffusion.model.diffusion_model import DiffusionModel


@runtime_checkable
class Shaped(Protocol):
    """Data whose batches are known in size before there are any."""

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """Samples a batch, sides in model space."""
        ...


def run_memory(
    module: Any,
    *,
    objectives: Iterable[str],
    optimizer: Callable[..., torch.optim.Optimizer],
    twice: Collection[str] = (),
) -> MemoryEstimate:
    """Estimate for a DiffusionModule that has a trainer; needs neither data nor anything on the device.

    The datamodule's ``batch_shape(model)`` tells samples a batch, height and width in model space. Where there is none,
    one sample of the size that the model was made for is counted.

    Args:
        module: Has not begun to train.
        objectives: As for ``estimate_memory``.
        optimizer: Called as ``optimizer(parameters, learning_rate)``.
        twice: Objectives that see every sample twice.
    """
    trainer, model = module.trainer, module.diffusion
    data = datamodule_of(trainer)
    device = trainer.strategy.root_device
    # text encoders are sent off before the denoiser comes, see DiffusionModel.embed_ahead
    leave = device.type != "cpu" and isinstance(data, KnowsCaptions) and len(data.known_captions()) > 0
    away = list(map(id, model.captions.encoders if leave else ()))
    batch, *size = data.batch_shape(model) if isinstance(data, Shaped) else (1, *model.sample_shape()[1:])
    return estimate_memory(
        module.denoiser,
        objectives=objectives,
        batch=batch,
        size=tuple(size),
        optimizer=optimizer,
        averaged=averaging(trainer) is not None,
        others={
            name: part
            for name, part in model.pipeline.components.items()
            if _is_other(module, part) and id(part) not in away
        },
        autocast=trainer.precision_plugin.forward_context,
        device=device,
        twice=twice,
    )


def _is_other(module: Any, part: Any) -> bool:
    return isinstance(part, nn.Module) and part is not module.denoiser
