"""A denoiser whose frozen linear layers are held as 8-bit codes, and their stored weights in their places again.

What trains is made of the weights as they are stored, before codes take their place; and exports are made of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.rest.int8 import Codes, coded
from sparsight.diffusion.surgery.shell import AttentionShell, Shell

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


def quantise(denoiser: nn.Module, option: str) -> None:
    """Hold the weights of frozen linear layers in blocks as codes of 8 bits, one layer after the other.

    Mixers, what trains, and layers that a model keeps in a precision of their own stay as they are; so do convolutions.

    Args:
        denoiser: With shells, and with all that is to train requiring gradients; changed in place.
        option: That asks for it, with its value, for the message.

    Raises:
        ConfigurationError: torchao is not installed, or there is no such layer.
    """
    check_quantisation(option)
    dtype, found = compute_dtype(denoiser), False
    for layer in _linear_layers(denoiser):
        weight: Any = layer.weight
        if not weight.requires_grad and weight.dtype == dtype and not is_coded(weight):
            layer.weight = nn.Parameter(coded(weight), requires_grad=False)
            found = True
    if not found:
        raise ConfigurationError(f"{option} finds no frozen linear layer in the denoiser's blocks: set it to null")


def _linear_layers(denoiser: nn.Module) -> Iterator[nn.Linear]:
    """Those of blocks, teachers' too, that are no mixer's."""
    kinds = family_of(denoiser).blocks
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    mixers = [module.mixer for block in blocks for module in block.modules() if isinstance(module, Shell)]
    taken = {id(module) for mixer in mixers for module in mixer.modules()}
    for module in dict.fromkeys(module for block in blocks for module in block.modules()):
        if isinstance(module, nn.Linear) and id(module) not in taken:
            yield module


def is_coded(tensor: Tensor) -> bool:
    """Whether a weight is one of the codes that ``quantise`` made."""
    return isinstance(tensor, Codes)


def has_codes(denoiser: nn.Module) -> bool:
    """Whether some of a denoiser's weights are codes."""
    return any(is_coded(parameter) for parameter in denoiser.parameters())


def decoded(tensor: Tensor) -> Tensor:
    """A weight, or the numbers that its codes stand for."""
    return tensor.detach().dequantize() if is_coded(tensor) else tensor


@contextmanager
def stored_weights(denoiser: nn.Module, stored: Mapping[str, Tensor]) -> Iterator[None]:
    """The denoiser with stored weights in the places of codes; outside they are on the CPU, inside a layer's call not.

    So a device that has room for codes alone runs the student that is exported. Teachers beside feature mixers keep
    their codes: they are in no export.

    Args:
        denoiser: With shells and adapters; as it was afterwards.
        stored: Weights of the base, by its names; each is asked for once.
    """
    beside = tuple(f"{path}.teacher." for path, m in denoiser.named_modules() if isinstance(m, AttentionShell))
    codes: dict[nn.Module, Any] = {}
    hooks = []
    try:
        for path, layer in list(denoiser.named_modules()):
            weight = layer._parameters.get("weight")
            if weight is None or not is_coded(weight) or f"{path}.".startswith(beside):
                continue
            whole = nn.Parameter(stored[f"{path.replace(WRAPPED, '')}.weight"], requires_grad=False)
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
