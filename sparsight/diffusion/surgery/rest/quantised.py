"""A denoiser whose frozen linear layers are held as 8-bit codes, and their stored weights in their places again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn

from sparsight.common.quantised.weights import hold_in_codes, stored_weights
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.shell import AttentionShell, Shell


def quantise(denoiser: nn.Module, option: str) -> None:
    """Hold the weights of frozen linear layers in blocks as codes of 8 bits, one layer after the other.

    Mixers, what trains, and layers that a model keeps in a precision of their own stay as they are; so do convolutions.

    Args:
        denoiser: With shells, and with all that is to train requiring gradients; changed in place.
        option: That asks for it, with its value, for the message.

    Raises:
        ConfigurationError: torchao is not installed, or there is no such layer.
    """
    layers = _linear_layers(denoiser)
    hold_in_codes(layers, dtype=compute_dtype(denoiser), option=option, where="the denoiser's blocks")


def _linear_layers(denoiser: nn.Module) -> Iterator[nn.Linear]:
    """Those of blocks, teachers' too, that are no mixer's."""
    kinds = family_of(denoiser).blocks
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    mixers = [module.mixer for block in blocks for module in block.modules() if isinstance(module, Shell)]
    taken = {id(module) for mixer in mixers for module in mixer.modules()}
    for module in dict.fromkeys(module for block in blocks for module in block.modules()):
        if isinstance(module, nn.Linear) and id(module) not in taken:
            yield module


def stored_denoiser(denoiser: nn.Module, stored: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """The denoiser with stored weights in the places of codes, as ``stored_weights``.

    Teachers beside feature mixers keep their codes: they are in no export.
    """
    beside = tuple(f"{path}.teacher." for path, m in denoiser.named_modules() if isinstance(m, AttentionShell))
    return stored_weights(denoiser, stored, but=lambda name: name.startswith(beside))
