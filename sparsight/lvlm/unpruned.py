"""The model as it was before layers left, as a teacher of the one that heals.

Shape legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsight.distill.processes import process_count, summed
from sparsight.lvlm.bypass import leaving
from sparsight.lvlm.tower import find_parts


class UnprunedModel:
    """A frozen copy, kept outside of checkpoints.

    Args:
        model: The model, with all its layers at work.
        weight: Of the difference in the loss.
    """

    def __init__(self, model: PreTrainedModel, *, weight: float) -> None:
        self.model: Any = copy.deepcopy(model).requires_grad_(False).eval()
        self.last = find_parts(self.model).layers[-1]
        self.weight = weight

    def difference(self, inputs: Mapping[str, Any], hidden_BTC: Tensor) -> Tensor:
        """Squared difference of the last layer's hidden states, over the squares of this model's; padding left out.

        Args:
            inputs: Arguments of the forward pass.
            hidden_BTC: Those of the healing model.
        """
        if self.model.device != hidden_BTC.device:
            self.model.to(hidden_BTC.device)
        with torch.no_grad(), outputs_of(self.last) as found:
            self.model.model(**{**inputs, "use_cache": False})
        mask_BT = inputs.get("attention_mask")
        mask_BT = torch.ones(hidden_BTC.shape[:2], device=hidden_BTC.device) if mask_BT is None else mask_BT
        wanted, got = (hidden[mask_BT.bool()].float() for hidden in (found[-1], hidden_BTC))
        # DDP averages over processes
        return (got - wanted).square().sum() * process_count() / summed(wanted.square().sum())


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Hidden states that a decoder layer answers, call by call."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: found.append(leaving(output)))
    try:
        yield found
    finally:
        hook.remove()
