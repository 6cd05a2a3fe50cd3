"""What tuning an image-text model holds of a device's memory all the time: by parameter count, not measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from sparsight.common.measure.memory_table import (
    MemoryEstimate,
    available_bytes,
    tensor_bytes,
    tensors_of,
    training_bytes,
)
from sparsight.common.quantised.weights import has_codes
from sparsight.common.training.averaging import averaging
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LAYERS, METHODS, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_COUNTED = (
    "activations, which grow with batch_size and with the length of texts and images, half-precision copies of trained "
    "weights while a step lasts, workspaces of kernels, and what the driver and the allocator keep (often 1 to 2 GiB)"
)
REMEDIES = (
    "set model.loading.dtype to bfloat16, choose fewer layers, tune them by adapters (lora) or a few at a time "
    "(callbacks.LayerRotation), or split the model over several GPUs (ModelParallelStrategy)"
)


@runtime_checkable
class Rotating(Protocol):
    """A callback that lets few of the chosen layers train at a time."""

    layers_at_a_time: int


def tuning_memory(
    model: PreTrainedModel,
    parts: Parts,
    trained: Mapping[Part, Collection[str]],
    stages: Sequence[TuningStage],
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    layers_at_a_time: int | None = None,
    averaged: bool = False,
    unpruned: nn.Module | None = None,
    methods: nn.Module | None = None,
    device: torch.device | None = None,
) -> MemoryEstimate:
    """Count what stands in memory while a model is tuned.

    Args:
        model: As it is trained, on any device, ``meta`` included; it is not called.
        parts: Its parts.
        trained: Names of the trained parameters by part, of all stages.
        stages: Gradients and optimiser state are those of the stage that trains most.
        optimizer: Called as ``optimizer(parameters, learning_rate)``.
        layers_at_a_time: Number of layers that train at one time if they rotate.
        averaged: Whether a moving average of what is trained is kept.
        unpruned: A copy of the model that is kept beside it.
        methods: Trained weights of a recipe's methods.
        device: Where training runs; none if that is not known.
    """
    named = dict(model.named_parameters())
    tuned = {id(named[name]) for names in trained.values() for name in names}
    frozen = [tensor for tensor in tensors_of(model) if id(tensor) not in tuned]
    # of several precisions, that of the most bytes names the row
    dtype = max({t.dtype for t in frozen}, key=lambda d: tensor_bytes(t for t in frozen if t.dtype == d))
    sizes = {part: _sizes(named, names) for part, names in trained.items()}
    if methods is not None:
        sizes[METHODS] = {name: tensor_bytes([tensor]) for name, tensor in methods.named_parameters()}
    learning = sizes | {LAYERS: _largest_layers(parts, sizes.get(LAYERS, {}), layers_at_a_time)}
    weights = sum(sum(part.values()) for part in sizes.values())
    at_a_time = max(sum(sum(learning[part].values()) for part in stage.train) for stage in stages)
    held = str(dtype).removeprefix("torch.") + (" and int8" if has_codes(model) else "")
    standing = {
        f"frozen weights, {held}": tensor_bytes(frozen),
        f"trained {' and '.join(sizes)}, float32": weights,
        **training_bytes(weights, optimizer=optimizer, at_a_time=at_a_time, averaged=averaged),
        "copy of the model before layers leave": 0 if unpruned is None else tensor_bytes(tensors_of(unpruned)),
    }
    available = None if device is None else available_bytes(device)
    return MemoryEstimate(standing, NOT_COUNTED, REMEDIES, available=available)


def run_tuning_memory(module: Any) -> MemoryEstimate:
    """Estimate of a SparseLayerTuning whose trainer is about to begin; its callbacks say what else is kept."""
    rotation = next((each for each in module.trainer.callbacks if isinstance(each, Rotating)), None)
    return tuning_memory(
        module.model,
        module.parts,
        module.trained,
        module.clock.stages,
        optimizer=module.optimizer,
        layers_at_a_time=None if rotation is None else rotation.layers_at_a_time,
        averaged=averaging(module.trainer) is not None,
        unpruned=None if module.unpruned is None else module.unpruned.model,
        methods=module.method_weights if module.trains_methods else None,
        device=module.device,
    )


def _sizes(named: Mapping[str, nn.Parameter], names: Collection[str]) -> dict[str, int]:
    return {name: tensor_bytes([named[name]]) for name in names}


def _largest_layers(parts: Parts, sizes: Mapping[str, int], count: int | None) -> dict[str, int]:
    """Sizes of the parameters of the ``count`` largest layers, or of all."""
    layer = {name: name.removeprefix(f"{parts.layers_name}.").partition(".")[0] for name in sizes}
    total = {number: sum(size for name, size in sizes.items() if layer[name] == number) for number in layer.values()}
    largest = sorted(total, key=total.__getitem__, reverse=True)[:count]
    return {name: size for name, size in sizes.items() if layer[name] in largest}
