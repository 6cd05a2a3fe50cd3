"""Projections that a feature mixer has for itself, started as the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def copied(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Set a linear layer to a projection of the teacher; one without a bias is one of zero."""
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)
