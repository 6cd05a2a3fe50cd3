"""Low-rank adapters (peft's) on a denoiser's linear layers: they train beside its mixers, and are merged in exports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError, require
from sparsight.common.quantised.weights import decoded, is_coded
from sparsight.diffusion.surgery.rest.choice import is_taken
from sparsight.diffusion.surgery.shell import Shell

ADAPTER = "sparsight"
"""Their name: adapters of others are none of ours."""


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the linear layers that neither mixers nor the rest train.

    Args:
        rank: Of the update.
        alpha: The update counts alpha / rank times.
        targets: Patterns of layers' paths, e.g. ``*.ff.*``; all linear layers if not given.

    Raises:
        ValueError: A number is out of range.
    """

    rank: int = 16
    alpha: int = 16
    targets: Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        require(self.rank >= 1 and self.alpha >= 1, "rank and alpha", (self.rank, self.alpha), "1 or more")


class Switch:
    """Turns adapters off and on again; peft's own also says anew what learns."""

    def __init__(self) -> None:
        self._off: list[tuple[Any, list[tuple[nn.Parameter, bool]]]] = []

    def off(self, layers: Iterable[Any]) -> None:
        """Let these layers compute without adapters."""
        for layer in layers:
            learning = [(p, p.requires_grad) for p in layer.parameters()]
            layer.enable_adapters(False)
            self._off.append((layer, learning))
            _learn(learning)

    def on(self) -> None:
        """Let all that are off compute with them again."""
        for layer, learning in self._off:
            layer.enable_adapters(True)
            _learn(learning)
        self._off.clear()


def add_adapters(
    denoiser: nn.Module, shells: Mapping[str, Shell], lora: LoRA, *, without: Iterable[str]
) -> dict[str, list[str]]:
    """Put adapters on linear layers, in float32, so that they change nothing yet; all else learns as before.

    Args:
        denoiser: With shells in it; changed in place.
        shells: Its shells by path.
        lora: Which and how.
        without: Names of parameters that train themselves: their layers get none.

    Returns:
        Names of the adapters' parameters by the paths of the layers.

    Raises:
        ConfigurationError: A pattern chooses no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trained = {name.rpartition(".")[0] for name in without}
    linear = [path for path, m in denoiser.named_modules() if isinstance(m, nn.Linear)]
    left = [path for path in linear if path not in trained and not is_taken(path, shells)]
    for pattern in lora.targets:
        if not any(fnmatch(path, pattern) for path in left):
            raise ConfigurationError(
                f"model.trained.lora.targets: {pattern!r} matches no linear layer that does not train already; there "
                f"are {len(left)}{': ' if left else ''}{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}. Leave "
                "it out; model.trained.lora null trains none"
            )
    chosen = [path for path in left if any(fnmatch(path, pattern) for pattern in lora.targets)]
    learning = [(p, p.requires_grad) for p in denoiser.parameters()]
    exactly = "|".join(map(re.escape, chosen))  # a list would be of ends of names
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=exactly, bias="none")
    inject_adapter_in_model(config, denoiser, adapter_name=ADAPTER)
    _learn(learning)  # peft freezes all others
    own: dict[str, list[str]] = {}
    for path in chosen:
        found = [(name, p) for name, p in denoiser.get_submodule(path).named_parameters() if f".{ADAPTER}." in name]
        for _, parameter in found:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        own[path] = [f"{path}.{name}" for name, _ in found]
    return own


def adapted_layers(denoiser: nn.Module) -> dict[str, Any]:
    """Layers that have an adapter of ours, by path."""
    from peft.tuners.lora import LoraLayer

    found = {path: m for path, m in denoiser.named_modules() if isinstance(m, LoraLayer)}
    return {path: layer for path, layer in found.items() if ADAPTER in layer.scaling}


def take_adapters(denoiser: nn.Module, *, merge: bool) -> None:
    """Take our adapters away, in place.

    Args:
        denoiser: Changed in place.
        merge: Whether what they add goes into the weights below them.
    """
    for path, layer in adapted_layers(denoiser).items():
        if merge:
            base = layer.get_base_layer()
            if is_coded(base.weight):
                base.weight = nn.Parameter(decoded(base.weight), requires_grad=False)
            layer.merge(adapter_names=[ADAPTER])
        parent, _, name = path.rpartition(".")
        setattr(denoiser.get_submodule(parent), name, layer.get_base_layer())


@torch.no_grad()
def without_adapters(denoiser: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a denoiser with what our adapters add merged into the weights below them, in float32 at least.

    Args:
        denoiser: Has the adapters; stays as it is.
        state: Its tensors, or some of them, by the names that they have in it.
    """
    merged = dict(state)
    for path, layer in adapted_layers(denoiser).items():
        for name in [name for name in merged if name.startswith(f"{path}.")]:
            tensor, own = merged.pop(name), name.removeprefix(f"{path}.")
            if own.startswith("base_layer."):
                own = own.removeprefix("base_layer.")
                delta = layer.get_delta_weight(ADAPTER) if own == "weight" else None
                merged[f"{path}.{own}"] = tensor if delta is None else _added(tensor, delta)
    return merged


def _added(weight: Tensor, delta: Tensor) -> Tensor:
    """Where the weight is, which may be the CPU's memory for want of the device's."""
    return decoded(weight).to(delta.dtype) + delta.to(weight.device)


def _learn(learning: Iterable[tuple[nn.Parameter, bool]]) -> None:
    for parameter, wanted in learning:
        parameter.requires_grad_(wanted)
