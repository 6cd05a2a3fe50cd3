"""What of an image-text model is trained: chosen decoder layers, whole or by adapters, and the projector."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from sparsight.lvlm.tower import Parts

Part = Literal["layers", "projector"]
LAYERS: Part = "layers"
PROJECTOR: Part = "projector"


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the linear layers of the chosen decoder layers.

    Args:
        rank: Of the update.
        alpha: The update counts alpha / rank times.
        dropout: On the adapters' inputs while training.
        targets: Last parts of the names of linear layers, e.g. ``[q_proj, v_proj]``; all linear layers if not given.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: Sequence[str] | None = None


def add_lora(model: PreTrainedModel, parts: Parts, layers: Iterable[int], lora: LoRA) -> None:
    """Put adapters on linear layers of the chosen decoder layers, and nowhere else; changes the model in place.

    peft's own ``layers_to_transform`` would reach the vision tower too, whose layers have the same names.

    Raises:
        ValueError: No linear layer has one of the target names.
        RuntimeError: peft put adapters elsewhere.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    wanted = {
        f"{parts.layer_name(index)}.{name}"
        for index in layers
        for name, module in parts.layers[index].named_modules()
        if isinstance(module, nn.Linear) and (lora.targets is None or name.rpartition(".")[2] in lora.targets)
    }
    if not wanted:
        known = {n.rpartition(".")[2] for n, m in parts.layers[0].named_modules() if isinstance(m, nn.Linear)}
        raise ValueError(f"lora.targets {lora.targets} match no linear layer; a decoder layer has: {sorted(known)}")
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=sorted(wanted)
    )
    inject_adapter_in_model(config, model)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if adapted != wanted:
        raise RuntimeError(f"peft adapted {sorted(adapted ^ wanted)[:5]} otherwise than asked")


def merge_lora(model: nn.Module) -> None:
    """Add all adapters to the weights below them and take them away, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())


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
        ValueError: As :func:`add_lora`.
    """
    if lora is not None:
        add_lora(model, parts, layers, lora)
    model.requires_grad_(False)
    found = trained_parameters(model, parts, layers=layers, adapters=lora is not None)
    kept = {part: named for part, named in found.items() if part in wanted}
    for parameter in (p for named in kept.values() for p in named.values()):
        parameter.data = parameter.data.float()
    return {part: list(named) for part, named in kept.items()}


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter."""
    return ".lora_" in name


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
