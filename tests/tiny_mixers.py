"""Mixers that do what nobody would train with."""

from __future__ import annotations

from torch import Tensor

from blocks import FeatureMixer, Grid


class Scaled(FeatureMixer):
    """Halves the hidden state; subclasses get it wrong in one way each."""

    def flops(self, grid: Grid) -> int:
        return grid.tokens

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC / 2


class WrongKernel(Scaled):
    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC / 2.1
