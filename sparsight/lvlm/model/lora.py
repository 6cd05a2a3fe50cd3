"""Low-rank adapters on decoder layers: on linear layers, and on experts, which transformers stacks in one parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparsight.common.errors import require
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"  # peft's name for the only one


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the weights of the chosen decoder layers.

    Args:
        rank: Of the update; of every expert's update in a mixture of experts.
        alpha: The update counts alpha / rank times.
        dropout: On the inputs of linear layers' adapters while training; those of experts have none.
        targets: Last parts of the names of linear layers or stacked experts, e.g. ``[q_proj, v_proj]``; all linear
            layers and experts if not given.
        least_share: Without ``targets``, adapters that reach a smaller share of a chosen layer's weights are refused.

    Raises:
        ValueError: A number is out of range.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: Sequence[str] | None = None
    least_share: float = 0.5

    def __post_init__(self) -> None:
        require(self.rank >= 1, "rank", self.rank, "1 or more")
        require(self.alpha >= 1, "alpha", self.alpha, "1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 up to, not including, 1")
        require(0 <= self.least_share <= 1, "least_share", self.least_share, "0 to 1")


@dataclass(frozen=True)
class Reach:
    """What adapters reach of a decoder layer.

    Args:
        share: Of its weights.
        missed: Of what they do not reach, names inside the layer and shares, largest first.
    """

    share: float
    missed: Mapping[str, float]


def add_lora(model: PreTrainedModel, parts: Parts, layers: Iterable[int], lora: LoRA) -> dict[int, Reach]:
    """Put adapters on the weights of the chosen decoder layers, and nowhere else; changes the model in place.

    peft's own ``layers_to_transform`` would reach the vision tower too, whose layers have the same names.

    Returns:
        What they reach, by layer.

    Raises:
        ValueError: No weight has one of the target names, or too small a share of a layer would be reached.
        RuntimeError: peft put adapters elsewhere.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = {index: _targets(parts.layers[index], lora.targets) for index in layers}
    if not any(chosen.values()):
        known = {_short(name) for name, _ in adaptable(parts.layers[0])}
        raise ValueError(f"lora.targets {lora.targets} match no linear layer; a decoder layer has: {sorted(known)}")
    reached = {index: _reach(parts.layers[index], found) for index, found in chosen.items()}
    _check_reach(reached, lora)
    wanted = {f"{parts.layer_name(index)}.{name}": module for index in chosen for name, module in chosen[index].items()}
    by_module = {name for name, module in wanted.items() if _keeps_name(model, name) and _is_plain(module)}
    by_parameter = sorted(wanted.keys() - by_module)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0 if by_parameter else lora.dropout,  # peft has none for parameters
        bias="none",
        target_modules=sorted(name.removesuffix(".weight") for name in by_module),
        target_parameters=by_parameter or None,
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    adapted = {_weight_of(name, module): module for name, module in _adapters(model)}
    if adapted.keys() != wanted.keys():
        raise RuntimeError(f"peft adapted {sorted(adapted.keys() ^ wanted.keys())[:5]} otherwise than asked")
    for name in by_module if lora.dropout > 0 else ():
        adapted[name].lora_dropout[ADAPTER] = nn.Dropout(lora.dropout)
    return reached


def adaptable(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Weights of a layer that adapters can stand on, by their names in it, each with the module that holds it.

    These are the weights of linear layers and stacked matrices, one for every expert.
    """
    for prefix, module in layer.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            stacked = parameter.ndim == 3 and not isinstance(module, _ConvNd)
            if stacked or (isinstance(module, nn.Linear) and name == "weight"):
                yield f"{prefix}.{name}" if prefix else name, module


def merge_lora(model: nn.Module) -> None:
    """Add all adapters to the weights below them and take them away, in place."""
    adapters = list(_adapters(model))
    for _, module in adapters:
        module.merge()
    for name, module in adapters:
        if ".base_layer" not in name:  # two on one module stand inside each other
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter."""
    return ".lora_" in name


def describe(reached: Mapping[int, Reach]) -> str:
    """What adapters reach, in one line."""
    least = min(reached.values(), key=lambda reach: reach.share)
    most = max(reach.share for reach in reached.values())
    shares = f"{least.share:.1%}" if f"{least.share:.1%}" == f"{most:.1%}" else f"{least.share:.1%} to {most:.1%}"
    missed = ", ".join(f"{name} {share:.1%}" for name, share in list(least.missed.items())[:3] if share >= 0.001)
    return f"adapters reach {shares} of the weights of a chosen layer{f'; not {missed}' if missed else ''}"


def _targets(layer: nn.Module, targets: Sequence[str] | None) -> dict[str, nn.Module]:
    found = dict(adaptable(layer))
    return found if targets is None else {name: module for name, module in found.items() if _short(name) in targets}


def _short(name: str) -> str:
    """Last part of the name of a linear layer, or of a parameter that is no module's ``weight``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _reach(layer: nn.Module, targets: Mapping[str, nn.Module]) -> Reach:
    sizes = {name: parameter.numel() for name, parameter in layer.named_parameters()}
    total = sum(sizes.values())
    missed = {name: size / total for name, size in sizes.items() if name not in targets}
    ordered = dict(sorted(missed.items(), key=lambda item: -item[1]))
    return Reach(sum(sizes[name] for name in targets) / total, ordered)


def _check_reach(reached: Mapping[int, Reach], lora: LoRA) -> None:
    for index, reach in reached.items():
        if lora.targets is None and reach.share < lora.least_share:
            missed = ", ".join(f"{name} {share:.1%}" for name, share in list(reach.missed.items())[:3])
            raise ValueError(
                f"lora: adapters would reach {reach.share:.1%} of the weights of layer {index}, less than least_share "
                f"{lora.least_share:.1%}; out of reach are {missed}. Tune whole layers (no lora), lower "
                "lora.least_share, or name lora.targets"
            )


def _is_plain(module: nn.Module) -> bool:
    """Whether what a linear layer returns is what peft adds an adapter's output to; routers may return more."""
    quantised = isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    return isinstance(module, nn.Linear) and (type(module).forward is nn.Linear.forward or quantised)


def _keeps_name(model: PreTrainedModel, name: str) -> bool:
    """Whether peft takes a linear layer for what it is, not for an expert as transformers 4 named them."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a peft that does not rename
        return True
    asked = [name.removesuffix(".weight")]
    config = LoraConfig(target_modules=asked)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it misses the other half of what it would fuse
        return False
    return list(config.target_modules or ()) == asked


def _adapters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@runtime_checkable
class OnParameter(Protocol):
    """An adapter of peft that stands on a parameter, not on a layer: on those of experts."""

    parameter_name: str


def _weight_of(name: str, module: Any) -> str:
    """Name, in the model without adapters, of the weight that an adapter stands on."""
    parameter = module.parameter_name if isinstance(module, OnParameter) else "weight"
    return f"{name.replace('.base_layer', '')}.{parameter}"
