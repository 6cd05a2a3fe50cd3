"""Frozen linear layers of a model whose weights are held as 8-bit codes, and stored weights in their places again.

What trains is made of the weights as they are stored, before codes take their place; and exports are made of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsight.common.errors import ConfigurationError
from sparsight.common.quantised.int8 import Codes, coded

Quantisation = Literal["int8"]
WRAPPED = ".base_layer"  # what peft calls a layer below adapters


def check_quantisation(option: str) -> None:
    """See that weights can be quantised here.

    Args:
        option: That asks for it, with its value, for the message.

    Raises:
        ConfigurationError: torchao is not installed.
    """
    if find_spec("torchao") is None:
        raise ConfigurationError(
            f"{option} needs torchao, which is not installed: pip install 'sparsight[quantised]' (or torchao), or set "
            "it to null"
        )


def hold_in_codes(layers: Iterable[nn.Linear], *, dtype: torch.dtype, option: str, where: str) -> None:
    """Hold the weights of frozen linear layers as codes of 8 bits, one layer after the other.

    What requires gradients, and what is held in another precision than most, stays as it is.

    Args:
        layers: Changed in place.
        dtype: Precision of most weights.
        option: That asks for it, with its value, for the message.
        where: What these layers are of, for the message.

    Raises:
        ConfigurationError: torchao is not installed, or there is no such layer.
    """
    check_quantisation(option)
    found = False
    for layer in layers:
        weight: Any = layer.weight
        if not weight.requires_grad and weight.dtype == dtype and not is_coded(weight):
            layer.weight = nn.Parameter(coded(weight), requires_grad=False)
            found = True
    if not found:
        raise ConfigurationError(f"{option} finds no frozen linear layer in {where}: set it to null")


def is_coded(tensor: Tensor) -> bool:
    """Whether a weight is one of the codes that ``hold_in_codes`` made."""
    return isinstance(tensor, Codes)


def has_codes(model: nn.Module) -> bool:
    """Whether some of a model's weights are codes."""
    return any(is_coded(parameter) for parameter in model.parameters())


def decoded(tensor: Tensor) -> Tensor:
    """A weight, or the numbers that its codes stand for."""
    return tensor.detach().dequantize() if is_coded(tensor) else tensor


def keep_from_ddp(module: nn.Module) -> None:
    """DDP sends all that is in a module from one process to the others, in a way that codes cannot be sent."""
    names = [name for name, p in module.named_parameters(remove_duplicate=False) if is_coded(p)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def coded_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose weight is codes, by the weight's name in the model as it is stored."""
    return {
        f"{path.replace(WRAPPED, '')}.weight": layer
        for path, layer in model.named_modules()
        if (weight := layer._parameters.get("weight")) is not None and is_coded(weight)
    }


@contextmanager
def stored_weights(
    model: nn.Module, stored: Mapping[str, Tensor], *, but: Callable[[str], bool] = lambda name: False
) -> Iterator[None]:
    """The model with stored weights in the places of codes; outside they are on the CPU, inside a layer's call not.

    So a device that has room for codes alone runs what is exported.

    Args:
        model: As it was afterwards.
        stored: Weights of the base, by its names; each is asked for once.
        but: Names of weights that stay codes.
    """
    codes: dict[nn.Module, Any] = {}
    hooks = []
    try:
        for name, layer in coded_layers(model).items():
            if but(name):
                continue
            weight: Any = layer._parameters["weight"]
            whole = nn.Parameter(stored[name], requires_grad=False)
            codes[layer], layer._parameters["weight"] = weight, whole
            call = _Call(whole, weight.device, weight.dtype)
            hooks += [layer.register_forward_pre_hook(call.enter), layer.register_forward_hook(call.leave)]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in codes.items():
            layer._parameters["weight"] = weight


class _Call:
    """Brings a layer's weight where it computes, for one call."""

    def __init__(self, whole: nn.Parameter, device: torch.device, dtype: torch.dtype) -> None:
        self.whole, self.device, self.dtype = whole, device, dtype

    def enter(self, layer: nn.Module, args: Any) -> None:
        layer._parameters["weight"] = nn.Parameter(self.whole.to(self.device, self.dtype), requires_grad=False)

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        layer._parameters["weight"] = self.whole
