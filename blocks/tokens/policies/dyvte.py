"""DyVTE: gates say from which layer on a prompt needs its image no more (Wu et al., arXiv 2411.19628).

Shape legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.tokens.base import Decision, LayerPolicy, Positions, Sight, positions_of
from blocks.tokens.token_map import QUESTION, TokenMap
from blocks.tokens.weighted import Answers, Shape, Weighted


class DynamicExit(Weighted, LayerPolicy):
    """All image tokens of a sample leave before the first layer whose gate says so (DyVTE).

    A gate reads the mean of the question's states and that of the prompt's last token. Each sample of a batch leaves by
    itself. Trained are the gates alone: images leave before a layer that is drawn for each batch, and its gate learns
    whether that was right: the answer's likeliest words stay nearly all, and its loss nearly what it was.

    Args:
        first_layer: The first layer with a gate.
        width: Neurons of a gate.
        agreement: Share of an answer's words that must stay the likeliest for an exit to be right, or more.
        tolerance: How many times as large its loss may be.
        positions: ``keep`` as in the paper, or ``renumber`` for positions without gaps.
        trained: File of trained weights, or a folder with it.
    """

    looks = False

    def __init__(
        self,
        first_layer: int = 1,
        width: int = 2048,
        agreement: float = 0.99,
        tolerance: float = 1.03,
        positions: Positions = "keep",
        trained: str | None = None,
    ) -> None:
        if first_layer < 1 or width < 1:
            raise ValueError(f"first_layer and width are from 1; got {first_layer} and {width}")
        if not 0 <= agreement <= 1 or tolerance < 1:
            raise ValueError(f"agreement is 0 to 1 and tolerance from 1; got {agreement} and {tolerance}")
        self.first_layer, self.width, self.agreement, self.tolerance = first_layer, width, agreement, tolerance
        self.positions, self.trained = positions_of(positions), trained
        self._drawn = -1
        self._leaves: int | None = None  # before that layer whatever gates say; before none if it is -1
        self._seen: Tensor | None = None  # what the gate of the drawn layer reads (B, 2C), and who has an image (B)
        self._shows: Tensor | None = None

    def at(self, layer: int, depth: int) -> bool:
        """At layers with a gate."""
        return layer >= self.first_layer

    def make(self, shape: Shape) -> nn.Module:
        """A gate for each layer, those before the first left out."""
        if self.first_layer >= shape.depth:
            raise ValueError(f"DynamicExit has its first gate before layer {self.first_layer} of {shape.depth}")
        return nn.ModuleDict(
            {
                str(layer): nn.Sequential(
                    nn.Linear(2 * shape.channels, self.width, bias=False), nn.GELU(), nn.Linear(self.width, 2)
                )
                for layer in range(self.first_layer, shape.depth)
            }
        )

    def decide(self, sight: Sight) -> Decision:
        """No image token of samples whose gate says so."""
        visual = sight.tokens.visual
        if self._leaves is None:
            said = self.held[str(sight.layer)](read(sight.hidden.detach(), sight.tokens))
            leaves = said[:, 1] > said[:, 0]
        else:
            if self._drawn == sight.layer:
                self._seen, self._shows = read(sight.hidden.detach(), sight.tokens), visual.any(1)
            leaves = torch.full_like(visual[:, 0], self._leaves == sight.layer)
        return Decision(~visual | ~leaves[:, None])

    def lesson(self, answers: Answers) -> Tensor | None:
        """What the gate of a drawn layer should have said, as a cross-entropy."""
        layers = sorted(map(int, self.held))
        self._drawn = layers[int(torch.randint(len(layers), ()))]
        try:
            with torch.no_grad():
                self._leaves = self._drawn
                losses, logits, sample = answers()
                self._leaves = -1
                kept_losses, kept_logits, _ = answers()
        finally:
            self._leaves = None
        assert self._seen is not None and self._shows is not None
        same = (logits.argmax(-1) == kept_logits.argmax(-1)).float()
        count = len(self._seen)
        right = mean_of(same, sample, count) > self.agreement
        right &= mean_of(losses, sample, count) < self.tolerance * mean_of(kept_losses, sample, count)
        learns = self._shows & (torch.bincount(sample, minlength=count) > 0)
        if not bool(learns.any()):
            return None
        return F.cross_entropy(self.held[str(self._drawn)](self._seen)[learns], right[learns].long())


def read(hidden: Tensor, tokens: TokenMap) -> Tensor:
    """What a gate reads (B, 2C), float32: mean state of the question without its last token, and that token's.

    Of a question that is that token alone the mean is zero.
    """
    sample, last = torch.arange(len(hidden), device=hidden.device), tokens.last
    asked = (tokens.kind == QUESTION).index_put((sample, last), torch.zeros_like(last, dtype=torch.bool))
    states = hidden.float()
    mean = (states * asked[..., None]).sum(1) / asked.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([mean, states[sample, last]], 1)


def mean_of(values: Tensor, sample: Tensor, count: int) -> Tensor:
    """Mean of values (N) over the words of each sample (B)."""
    total = values.new_zeros(count).index_add(0, sample, values)
    return total / torch.bincount(sample, minlength=count).clamp(min=1)
