"""EAS: layers without attention, in whose place an adapter passes on what was before (Wu et al., arXiv 2403.15226).

Shape legend: B batch, Q queries, C channels, L layers, R channels inside the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.edits.base import LayerEdit, LayerParts
from blocks.tokens.artefact import Artefact, read_artefact
from blocks.tokens.token_map import ANSWER, TokenMap
from blocks.tokens.weighted import Shape, Weighted


class AttentionSkip(Weighted, LayerEdit):
    """Leaves out the attention of some layers, and puts a propagation-of-information adapter there (EAS, PIA).

    A layer becomes y = x + FFN(norm(PIA(norm(x)))). With x after the layer's first norm, h = (C x + m) / 2, where m is
    the mean of A x over the tokens so far, and PIA(x) = x + w_0 B h + w_1 D h; both shares w come from the mean of the
    prompt's x. B and D begin as zeros. The authors fold the adapter into the feed-forward part, once for each prompt
    and one prompt at a time; here it is computed, which serves batches. Layers keep no keys and values.

    Args:
        layers: Which; or give ``artefact``. The first layer with attention stays, as caches count tokens by it.
        artefact: File, or its content, of ``sparsight.lvlm.methods.calibration.skips.AttentionSearch``.
        width: Channels inside the adapter, even; the paper takes 256 for LLaVA.
        temperature: Of the shares.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        artefact: str | Mapping[str, Any] | None = None,
        width: int = 256,
        temperature: float = 10.0,
        trained: str | None = None,
    ) -> None:
        if (layers is None) == (artefact is None):
            raise ValueError("AttentionSkip needs layers or an artefact, one of them")
        if width < 2 or width % 2 or temperature <= 0:
            raise ValueError(f"width is even and from 2, temperature above 0; got {width} and {temperature}")
        self.artefact: Artefact | None = None if artefact is None else read_artefact(artefact, kind="AttentionSearch")
        self.layers = None if layers is None else [int(layer) for layer in layers]
        found = self.artefact["values"]["layers"] if self.artefact is not None else self.layers
        self._layers = sorted({int(layer) for layer in found or ()})
        self.width, self.temperature, self.trained = width, temperature, trained

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        missing = [number for number in self._layers if not 0 <= number < depth]
        if missing:
            raise ValueError(f"AttentionSkip names layers {missing}; there are 0 to {depth - 1}")
        return layer in self._layers

    def make(self, shape: Shape) -> nn.Module:
        """An adapter for each layer."""
        if shape.channels % 2:
            raise ValueError(f"AttentionSkip halves channels, of which there are {shape.channels}")
        return nn.ModuleDict({str(layer): _Adapter(shape.channels, self.width) for layer in self._layers})

    def compute(
        self, hidden: Tensor, parts: LayerParts, queries: TokenMap, layer: int, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What leaves the layer, and sums and shares that its next tokens go on from (B, R + 3)."""
        normed = parts.first_norm(hidden)
        adapted, state = self.adapted(normed.float(), queries, layer, state)
        out: Tensor = parts.feed_forward(parts.second_norm(adapted.to(normed)))
        return hidden + (out if parts.last_norm is None else parts.last_norm(out)), state

    def adapted(self, normed: Tensor, queries: TokenMap, layer: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The adapter's answer (B, Q, C), and the state as of ``compute``."""
        held = self.held[str(layer)]
        present = queries.present[..., None].to(normed)
        if state is None:
            asked = present * (queries.kind != ANSWER)[..., None]
            mean = (normed * asked).sum(1) / asked.sum(1).clamp(min=1)
            shares = (held.shares(mean) / self.temperature).softmax(-1)
            state = torch.cat([normed.new_zeros(len(normed), self.width + 1), shares], 1)
        before, count, shares = state[:, None, :-3], state[:, None, -3:-2], state[:, -2:]
        total = before + (held.mean(normed) * present).cumsum(1)
        number = count + present.cumsum(1)
        inner = 0.5 * (held.own(normed) + total / number.clamp(min=1))
        halves = inner.unflatten(-1, (2, -1))  # groups, each of which makes half of the channels
        made = torch.einsum("bqgr,egcr->bqegc", halves, held.up).flatten(3)
        adapted = normed + (shares[:, None, :, None] * made).sum(2)
        return adapted, torch.cat([total[:, -1], number[:, -1], shares], 1)


class _Adapter(nn.Module):
    """C and A (R, C), B and D in two groups (2, 2, C / 2, R / 2), and what says their shares."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.own, self.mean = nn.Linear(channels, width, bias=False), nn.Linear(channels, width, bias=False)
        for part in (self.own, self.mean):
            nn.init.xavier_uniform_(part.weight)
        self.up = nn.Parameter(torch.zeros(2, 2, channels // 2, width // 2))
        self.shares = nn.Linear(channels, 2, bias=False)
