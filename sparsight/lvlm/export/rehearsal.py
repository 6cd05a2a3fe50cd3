"""What is certain to fail when a tuned image-text model is exported, tried before its training begins.

Models are built again on the meta device, from their configuration alone; the model itself writes two tokens.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsight.common.errors import ConfigurationError, first_line
from sparsight.common.plain import setting
from sparsight.lvlm.export.adapters import adapter_config, kept_names, tensors_beside
from sparsight.lvlm.export.reload import answers, example_inputs
from sparsight.lvlm.model.lora import is_adapter
from sparsight.lvlm.model.tower import name_parts, named_parts
from sparsight.lvlm.scores.run import in_eval_mode
from sparsight.lvlm.surgery.remove import remove_layers
from sparsight.lvlm.train.trained import LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]


def rehearse_export(module: Any, processor: Any) -> None:
    """Try everything of an export that does not need trained weights.

    Args:
        module: A SparseLayerTuning that is about to be trained; stays as it is.
        processor: What the data are made with.

    Raises:
        ConfigurationError: A part of the export would fail; the message says which, and why.
    """
    model = module.model
    with tempfile.TemporaryDirectory() as scratch:
        _step("save the processor", lambda: processor.save_pretrained(scratch))
        _step("save the configuration", lambda: model.config.save_pretrained(scratch))
        _step("save the generation settings", lambda: model.generation_config.save_pretrained(scratch))
    if setting(model.config, "quantization_config") is None:  # packed weights have shapes of their own
        _step(
            "build the model from its configuration again", lambda: check_rebuilds(skeleton(model), base_shapes(model))
        )
    if module.prune is not None:
        last = int(module.sites()[-1].rpartition(".")[2])
        _step("take a layer out", lambda: check_removal(skeleton(model), last))
    if module.adapters and LAYERS in module.trained:
        _step("keep the adapters for peft", lambda: check_adapters(module))
    _step("let the model write", lambda: _write(module, processor))


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model that a configuration describes, on the meta device and without adapters."""
    config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
    with torch.device("meta"):
        return name_parts(type(model)(config), named_parts(model))


def base_shapes(model: nn.Module) -> Shapes:
    """Shapes of a model's parameters by the names that they have without adapters."""
    named = model.named_parameters()
    return {name.replace(".base_layer", ""): tuple(p.shape) for name, p in named if not is_adapter(name)}


def check_rebuilds(again: PreTrainedModel, wanted: Shapes) -> None:
    """Make sure that a model has these parameters.

    Raises:
        ValueError: It has others.
    """
    found = base_shapes(again)
    if found != wanted:
        different = sorted(set(found.items()) ^ set(wanted.items()))
        raise ValueError(f"{len(different)} parameters differ from what its configuration says, first {different[:2]}")


def check_removal(model: PreTrainedModel, layer: int) -> None:
    """Make sure that a model without a layer is what its shortened configuration describes.

    Args:
        model: Loses the layer.
        layer: 0-based.

    Raises:
        ValueError: The layer cannot leave, or another model would be loaded.
    """
    remove_layers(model, [layer])
    check_rebuilds(skeleton(model), base_shapes(model))


def check_adapters(module: Any) -> None:
    """Make sure that peft finds a place on the base model for all that is written beside an export.

    Raises:
        ValueError: It does not.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    base = skeleton(module.model)
    lost = tensors_beside(module).keys() - base.state_dict().keys()
    if lost:
        raise ValueError(f"the base model has no {sorted(lost)[:3]}")
    places = get_peft_model_state_dict(get_peft_model(base, adapter_config(module, base=None))).keys()
    different = places ^ kept_names(module)
    if different:
        raise ValueError(f"peft has other names for {sorted(different)[:3]}")


def _write(module: Any, processor: Any) -> None:
    """The question that an export is asked when it has been written."""
    inputs = {name: value.to(module.device) for name, value in example_inputs(processor).items()}
    with in_eval_mode(module.model), module.retired.taken_out():
        answers(module.model, inputs, new_tokens=2)


def _step(what: str, try_it: Callable[[], Any]) -> None:
    try:
        try_it()
    except Exception as error:  # libraries raise what they like; none of it may come after hours of training
        raise ConfigurationError(
            f"the export at the end of this run would fail to {what}: {type(error).__name__}: {first_line(error)}"
        ) from error
