"""SparseVLM: words that speak of the image choose what stays (Zhang et al., arXiv 2410.04417).

Shape legend: B batch, h heads, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.tokens.base import Decision, LayerPolicy, Positions, Sight, positions_of, share
from blocks.tokens.token_map import QUESTION, TokenMap, best_visual


class SparseVLM(LayerPolicy):
    """Before some layers, keeps the image tokens to which raters attend: words that are like the image (SparseVLM).

    Raters are the words of the question whose share in the softmax of likeness to image tokens, mean over these, is
    above the mean, all as they enter the decoder. A part of what would leave can be merged instead: the best of it is
    clustered around peaks of density, and each cluster becomes its mean. Positions stay; the first version's code cuts
    them short, whatever was dropped.

    Args:
        layers: Before which image tokens leave; the paper takes 2, 6 and 15 of 32.
        keep: Shares of the image tokens of the prompt that are left at each; the paper's 300, 200 and 110 of 576.
        recycle: Part of the dropped tokens that is merged; the paper's first version merges 0.3, its second none.
        positions: ``keep``, or ``renumber`` for positions without gaps.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 6, 15),
        keep: Sequence[float] = (0.52, 0.35, 0.19),
        recycle: float = 0.0,
        positions: Positions = "keep",
    ) -> None:
        if not layers or min(layers) < 1 or list(layers) != sorted(set(layers)) or len(layers) != len(keep):
            raise ValueError(f"layers rise from 1 on, with a share each; got {list(layers)} and {list(keep)}")
        if not 0 <= recycle < 1:
            raise ValueError(f"recycle is 0 to 1; got {recycle}")
        self.layers, self.keep = list(layers), [share(part, name="keep") for part in keep]
        self.recycle, self.positions = recycle, positions_of(positions)

    def at(self, layer: int, depth: int) -> bool:
        """At those layers."""
        return layer in self.layers

    def decide(self, sight: Sight) -> Decision:
        """The best by the raters, and centres of what is merged."""
        assert sight.before is not None
        tokens = sight.tokens
        ratio = self.keep[self.layers.index(sight.layer)]
        count = (sight.begun.double() * ratio + 1e-9).long().clamp(min=1)
        rows = raters(sight.entering, tokens)
        scores = sight.before.received(rows)[:, 0].detach()
        keep = best_visual(scores, tokens, count)
        if self.recycle == 0:
            return Decision(keep)
        mix = torch.eye(keep.shape[1], device=keep.device).repeat(len(keep), 1, 1)
        for sample in range(len(keep)):
            dropped = (~keep[sample]).nonzero()[:, 0]
            number = int(len(dropped) * self.recycle)
            best = dropped[scores[sample, dropped].argsort(descending=True, stable=True)[:number]]
            for centre, members in clusters(sight.hidden[sample, best].detach(), best, max(number // 10, 1)):
                keep[sample, centre] = True
                mix[sample, centre] = torch.zeros_like(mix[sample, 0]).index_fill(0, members, 1 / len(members))
        return Decision(keep, mix=mix)


def raters(entering: Tensor, tokens: TokenMap) -> Tensor:
    """Which words choose (B, T), by states (B, T, C) at the decoder's entrance; all words where none stands out."""
    words = tokens.kind == QUESTION
    states = entering.float()
    likeness = (states @ states.transpose(1, 2)).masked_fill(~words[:, None], torch.finfo(torch.float32).min / 2)
    weights = likeness.softmax(-1) * tokens.visual[..., None]
    rating = weights.sum(1) / tokens.visual.sum(1, keepdim=True).clamp(min=1)
    mean = (rating * words).sum(1, keepdim=True) / words.sum(1, keepdim=True).clamp(min=1)
    chosen = words & (rating > mean)
    return torch.where(chosen.any(1, keepdim=True), chosen, words)


def clusters(states: Tensor, names: Tensor, count: int, nearest: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Centres and members, by names, of clusters around peaks of density of states (R, C)."""
    if not len(names):
        return []
    apart = torch.cdist(states.float(), states.float()) / states.shape[-1] ** 0.5
    near = apart.topk(min(nearest, len(names)), largest=False).values
    density = (-near.square().mean(1)).exp() - 1e-6 * torch.arange(len(names), device=apart.device)  # no ties
    denser = density[None] > density[:, None]
    reach = torch.where(denser, apart, float("inf")).amin(1)
    reach = torch.where(reach.isinf(), apart.amax(), reach)
    centres = (density * reach).argsort(descending=True, stable=True)[:count]
    member = centres[apart[:, centres].argmin(1)]
    member[centres] = centres
    return [(names[centre], names[member == centre]) for centre in centres]
