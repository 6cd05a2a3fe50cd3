"""Decoder layers of an image-text model whose frozen weights are held as 8-bit codes, and copies with stored ones."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsight.common.quantised.weights import coded_layers, hold_in_codes
from sparsight.lvlm.model.lora import is_adapter
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantise_layers(
    model: PreTrainedModel, parts: Parts, *, trained: Collection[str], dtype: torch.dtype, option: str
) -> None:
    """Hold linear layers of all decoder layers as codes of 8 bits, but for what trains in some stage.

    Adapters stand on codes as on the weights that these were made of (QLoRA, Dettmers et al., arXiv 2305.14314, there
    with 4 bits). Experts, which transformers stacks in one parameter, stay as they are.

    Args:
        model: With its adapters; changed in place.
        parts: Its parts.
        trained: Names of the parameters that any stage trains.
        dtype: Precision of what is frozen.
        option: That asks for it, with its value, for messages.

    Raises:
        ConfigurationError: As ``hold_in_codes``.
    """
    inside = f"{parts.layers_name}."

    def frozen() -> Iterator[nn.Linear]:
        for path, module in model.named_modules():
            name = f"{path}.weight"
            fixed = path.startswith(inside) and name not in trained and not is_adapter(name)
            if fixed and isinstance(module, nn.Linear):
                module.weight.requires_grad_(False)  # what evaluates freezes nothing
                yield module

    hold_in_codes(list(frozen()), dtype=dtype, option=option, where="decoder layers")


def whole_copy(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of a model in main memory, with stored weights where it has codes.

    Args:
        model: Stays as it is.
        stored: The base's own weights by its names; asked for those that codes were made of.
    """
    copied = copy.deepcopy(model).cpu()
    for name, layer in coded_layers(copied).items():
        layer._parameters["weight"] = nn.Parameter(stored[name].clone(), requires_grad=False)
    return copied
