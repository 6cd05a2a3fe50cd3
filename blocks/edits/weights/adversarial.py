"""Adversarial self-attention: an adversary hides keys from queries, and the model learns to answer as before.

Wu et al., arXiv 2206.12608. Shape legend: B batch, Q queries, K keys, C channels, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.edits.base import UNLIKELY, LogitEdit, within_layers
from blocks.tokens.attending import Attending
from blocks.tokens.weighted import Answers, Shape, Weighted


class AdversarialAttention(Weighted, LogitEdit):
    """In passes of its own while it trains, hides keys whose absence changes answers most; nothing is left of it after.

    In each layer, two linear forms of the states x that enter it give e = (W_q x_i) . (W_k x_j) / sqrt(C), and a query
    sees a key if e >= 0 and it saw it before. Learnt is D + tau^2 s: D, half the sum of both divergences between
    answers with and without hiding, and s, the share of keys that stay. The model makes it small; the adversary, behind
    a reversal of gradients, makes it large, and so hides much only where that matters.

    The adversary begins by hiding nothing. In the authors' code the noise of its choice cancels, and s is a sum, whose
    weight grows with the square of the text; gradients go through a factor of -10 000, here through the logarithm of
    sigmoid(e), as if attention weights were multiplied by that. It reads states behind a norm there, as BERT's are;
    here they are divided by their root mean square.

    Args:
        tau: Weight of what stays; the larger, the less is hidden.
        layers: Where it works; all if not given.
        trained: File of trained weights, or a folder with it.
    """

    trains_only = True

    def __init__(self, tau: float = 0.5, layers: list[int] | None = None, trained: str | None = None) -> None:
        if tau < 0 or layers == []:
            raise ValueError(f"tau is from 0, and layers are some or not given; got {tau} and {layers}")
        self.tau, self.layers, self.trained = tau, layers, trained
        self._hides = False
        self._entering: Tensor | None = None  # what the layer that is being computed is given (B, Q, C)
        self._layer = 0
        self._staying: list[Tensor] = []  # shares of keys, one a layer

    def at(self, layer: int, depth: int) -> bool:
        """In the chosen layers."""
        return within_layers(self.layers, layer)

    def make(self, shape: Shape) -> nn.Module:
        """Queries and keys of the adversary in each layer."""
        held: dict[str, nn.Module] = {}
        for layer in range(shape.depth):
            if self.at(layer, shape.depth):
                query, key = (nn.Linear(shape.channels, shape.channels) for _ in range(2))
                nn.init.zeros_(query.weight)
                nn.init.zeros_(query.bias)
                held[str(layer)] = nn.ModuleDict({"query": query, "key": key})
        if not held:
            raise ValueError(f"AdversarialAttention names layers {self.layers}; there are 0 to {shape.depth - 1}")
        return nn.ModuleDict(held)

    def mark(self, hidden: Tensor) -> None:
        """Keeps the states for the attention that follows."""
        self._entering = hidden.detach().float() if self._hides else None

    def measure(self, attending: Attending, layer: int) -> None:
        """Keeps the number of the layer."""
        self._layer = layer

    def bias(self, attending: Attending) -> Tensor:
        """What hides keys (B, 1, Q, K), in a pass that does."""
        if not self._hides or self._entering is None:
            return attending.query.new_zeros(1, 1, 1, 1)
        said = self._said(self._entering, self._layer)
        self._entering = None
        allowed = attending.allowed[:, :1]
        stays = (said >= 0) & allowed
        learnt = _reversed(said)
        chance = learnt.sigmoid()
        share = chance + (stays.float() - chance).detach()
        self._staying.append(share[allowed].mean())
        hidden = torch.where(stays, 0.0, UNLIKELY)
        return hidden + (F.logsigmoid(learnt) - F.logsigmoid(learnt).detach())

    def _said(self, states: Tensor, layer: int) -> Tensor:
        """E (B, 1, Q, K)."""
        held: Any = self.held[str(layer)]
        states = states / states.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        return (held["query"](states) @ held["key"](states).transpose(1, 2) / states.shape[-1] ** 0.5)[:, None]

    def lesson(self, answers: Answers) -> Tensor | None:
        """D + tau^2 s of a batch, in two passes."""
        _, plain, _ = answers()
        self._hides, self._staying = True, []
        try:
            _, changed, _ = answers()
        finally:
            self._hides, self._entering = False, None
        staying, self._staying = torch.stack(self._staying).mean(), []
        return divergence(plain, changed) + self.tau**2 * staying


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return -gradient


def _reversed(value: Tensor) -> Tensor:
    found: Tensor = _Reversal.apply(value)
    return found


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences of logits (N, V), mean over rows."""
    first, second = one.log_softmax(-1), other.log_softmax(-1)
    return ((first.exp() - second.exp()) * (first - second)).sum(-1).mean() / 2
