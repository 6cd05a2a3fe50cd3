"""Processes that share a split model gather its vision tower together, so none of them may pass it by.

FSDP2 gathers each part of a model when it is called, and the processes must do so in the same order. Where one has
images in its batch and another has none, they would wait for each other, or mix up the parts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def always_read_an_image(model: PreTrainedModel, parts: Parts, inputs: Mapping[str, Any]) -> None:
    """Let every forward pass of prompts that have no image read a spare one, to no effect; changes the model.

    Args:
        model: Split over processes.
        parts: Its parts.
        inputs: Keyword arguments of the forward pass, with the spare image; the same on all processes.
    """
    read: Any = model.get_image_features
    named = inspect.signature(read).parameters
    spare = {name: value for name, value in inputs.items() if name in named}
    called: list[nn.Module] = []

    def note(tower: nn.Module, _: Any) -> None:
        called.append(tower)

    def before_decoder(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        cache = named.get("past_key_values")
        if not called and (cache is None or cache.get_seq_length() == 0):  # what follows a prompt has no images
            features = read(**move_data_to_device(spare, model.device))
            named["inputs_embeds"] = named["inputs_embeds"] + _zero(features).to(named["inputs_embeds"])
        called.clear()
        return arguments, named

    for tower in parts.vision.values():
        tower.register_forward_pre_hook(note)
    parts.decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)


def _zero(features: Any) -> Tensor:
    """Zero, which depends on all features, so that gradients of what made them are gathered as well."""
    learning = [leaf for leaf in tree_leaves(dict(features)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return 0.0 * torch.stack([leaf.float().sum() for leaf in learning]).sum() if learning else torch.zeros(())
