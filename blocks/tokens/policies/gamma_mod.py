"""Gamma-MoD: layers that only some image tokens pass through (Luo et al., arXiv 2410.13859).

Shape legend: B batch, T tokens, Q queries, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.tokens.artefact import Artefact, read_artefact
from blocks.tokens.base import Decision, LayerPolicy, Positions, Sight, positions_of, share
from blocks.tokens.token_map import ANSWER, best_visual
from blocks.tokens.weighted import Shape, Weighted

LEAST_OF_PROMPT, LEAST_OF_ANSWER = 0.005, 0.5  # probabilities, the authors' own


class GammaMoD(Weighted, LayerPolicy):
    """Tokens that a router does not choose go around mixture-of-depths layers (gamma-MoD).

    One router serves all such layers. It reads what a layer's first norm makes of a token and gives a probability p, by
    which the feed-forward part of a chosen token is multiplied. While it trains, text is always chosen, and of each
    sample's image tokens a share competes for the rest; a cross-entropy teaches the router to say who was chosen. When
    the model answers, tokens of a prompt are chosen above p = 0.005 and those of an answer from p = 0.5 on, so what it
    saves depends on the data. The last token of a prompt is always chosen.

    Args:
        layers: Which layers are such; or give ``artefact``.
        artefact: File, or its content, of ``sparsight.lvlm.methods.calibration.ranks.LowRankLayers``, whose layers are
            those where attention has the lowest rank.
        ratio: Share of image tokens that a layer computes while it trains.
        balance: Weight of the cross-entropy.
        positions: ``renumber`` as in the paper, where chosen tokens stand one after the other, or ``keep``.
        trained: File of trained weights, or a folder with it.
    """

    looks = False
    feeds = True
    norms = True
    skips_answers = True

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        artefact: str | Mapping[str, Any] | None = None,
        ratio: float = 0.5,
        balance: float = 0.01,
        positions: Positions = "renumber",
        trained: str | None = None,
    ) -> None:
        if (layers is None) == (artefact is None):
            raise ValueError("GammaMoD needs layers or an artefact, one of them")
        if balance < 0:
            raise ValueError(f"balance is from 0; got {balance}")
        self.artefact: Artefact | None = None if artefact is None else read_artefact(artefact, kind="LowRankLayers")
        self.layers = None if layers is None else [int(layer) for layer in layers]
        found = self.artefact["values"]["layers"] if self.artefact is not None else self.layers
        self._layers = {int(layer) for layer in found or ()}
        self.ratio, self.balance = share(ratio, name="ratio"), balance
        self.positions, self.trained = positions_of(positions), trained
        self._losses: list[Tensor] = []

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        missing = sorted(number for number in self._layers if not 0 <= number < depth)
        if missing:
            raise ValueError(f"GammaMoD names layers {missing}; there are 0 to {depth - 1}")
        return layer in self._layers

    def make(self, shape: Shape) -> nn.Module:
        """The router."""
        return nn.Linear(shape.channels, 2, bias=False)

    def decide(self, sight: Sight) -> Decision:
        """Which tokens the layer computes, and how much of its feed-forward part they get."""
        assert sight.normed is not None
        tokens, logits = sight.tokens, self.held(sight.normed.float())
        chance = logits.softmax(-1)[..., 1]
        if sight.learns:
            count = (tokens.visual.sum(1).double() * self.ratio).ceil().long()
            keep = best_visual(chance.detach(), tokens, count) & tokens.present
            if torch.is_grad_enabled():
                present = tokens.present
                self._losses.append(F.cross_entropy(logits[present], keep[present].long()))
        else:
            keep = torch.where(tokens.kind == ANSWER, chance >= LEAST_OF_ANSWER, chance > LEAST_OF_PROMPT)
            sample = torch.arange(len(keep), device=keep.device)
            keep = keep.index_put((sample, tokens.last), torch.ones_like(sample, dtype=torch.bool))
        return Decision(keep, returns=True, scale=chance)

    def answers(self, layer: int, hidden: Tensor, normed: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Tokens of an answer that the layer computes."""
        assert normed is not None
        chance = self.held(normed.float()).softmax(-1)[..., 1]
        return chance >= LEAST_OF_ANSWER, chance

    def loss(self) -> Tensor | None:
        """The router's cross-entropies."""
        losses, self._losses = self._losses, []
        return self.balance * torch.stack(losses).sum() if losses else None
