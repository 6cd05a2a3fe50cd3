"""What of an image-text model is trained: chosen decoder layers, whole or by adapters, and the projector.

Beside it, methods of a recipe may have weights of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from sparsight.lvlm.model.lora import LoRA, add_lora, describe, is_adapter
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part = Literal["layers", "projector", "methods"]
LAYERS: Part = "layers"
PROJECTOR: Part = "projector"
METHODS: Part = "methods"


def make_trainable(
    model: PreTrainedModel, parts: Parts, *, layers: Sequence[int], lora: LoRA | None, wanted: Collection[Part]
) -> dict[Part, list[str]]:
    """Freeze a model, with adapters if asked for, and hold the parts that are to be trained in float32, in place.

    Args:
        model: The model.
        parts: Its parts.
        layers: Chosen decoder layers.
        lora: Adapters in place of the layers' weights.
        wanted: Parts that any stage trains.

    Returns:
        Names of the parameters of each of these parts; none of them requires gradients yet.

    Raises:
        ValueError: As ``add_lora``.
    """
    if lora is not None:
        rank_zero_info(describe(add_lora(model, parts, layers, lora)))
    model.requires_grad_(False)
    found = trained_parameters(model, parts, layers=layers, adapters=lora is not None)
    kept = {part: named for part, named in found.items() if part in wanted}
    for parameter in (p for named in kept.values() for p in named.values()):
        parameter.data = parameter.data.float()
    return {part: list(named) for part, named in kept.items()}


def trained_parameters(
    model: PreTrainedModel, parts: Parts, *, layers: Iterable[int], adapters: bool
) -> dict[Part, dict[str, nn.Parameter]]:
    """Parameters that may be trained, by part (``layers`` or ``projector``) and qualified name.

    Args:
        model: The model, with adapters already in it if there are to be any.
        parts: Its parts.
        layers: Chosen decoder layers.
        adapters: Train the layers' adapters, not their weights.
    """
    layer_names = tuple(f"{parts.layer_name(index)}." for index in layers)
    found: dict[Part, dict[str, nn.Parameter]] = {LAYERS: {}, PROJECTOR: {}}
    for name, parameter in model.named_parameters():
        if name.startswith(layer_names) and is_adapter(name) == adapters:
            found[LAYERS][name] = parameter
        elif any(name == part or name.startswith(f"{part}.") for part in parts.projector):
            found[PROJECTOR][name] = parameter
    return found


def require_gradients(
    model: PreTrainedModel,
    parts: Parts,
    trained: Mapping[Part, Collection[str]],
    *,
    learning: Collection[Part],
    layers: Collection[int],
) -> None:
    """Let some parameters learn, and no others; those lose their gradients.

    Args:
        model: It.
        parts: Its parts.
        trained: Names of the parameters that ever learn, by part.
        learning: Parts that learn now.
        layers: Decoder layers that learn where that part does.
    """
    active = tuple(f"{parts.layer_name(index)}." for index in layers)
    for part, names in trained.items():
        for name in names:
            on = part in learning and (part != LAYERS or name.startswith(active))
            parameter = model.get_parameter(name).requires_grad_(on)
            if not on:
                parameter.grad = None
