"""YOPO's four reductions of what image tokens cost (Zhang et al., arXiv 2410.06169).

Shape legend: B batch, Q queries, K keys, h heads, C channels, M neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.edits.base import AttentionEdit, FeedForwardEdit, Forward, MaskProgram, Rows, Where, layers_from
from blocks.tokens.artefact import Artefact, read_artefact
from blocks.tokens.base import Decision, LayerPolicy, Sight, share
from blocks.tokens.token_map import TokenMap

LINEARS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


class NeighbourWindow(MaskProgram):
    """Image tokens see those of a window around them, on all sides, of their own crop alone (YOPO).

    A mask gives the result and no speed.

    Args:
        window: Rows and columns; odd.
        first_layer: The first layer that is changed.
    """

    needs_grid = True

    def __init__(self, window: int = 5, first_layer: int = 0) -> None:
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window is odd and from 1; got {window}")
        self.window, self.first_layer = window, layers_from(first_layer)

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed."""
        return layer >= self.first_layer

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed to and of text; of images, the window."""
        near = torch.ones_like(allowed[:, 0])
        for one, other in ((queries.row, keys.row), (queries.column, keys.column)):
            near = near & ((one[:, :, None] - other[:, None]).abs() <= self.window // 2)
        for one, other in ((queries.image, keys.image), (queries.crop, keys.crop)):
            near = near & (one[:, :, None] == other[:, None])
        patches = [tokens.visual & (tokens.row >= 0) for tokens in (queries, keys)]
        return torch.where((patches[0][:, :, None] & patches[1][:, None])[:, None], near[:, None], allowed)


class InactiveHeads(AttentionEdit):
    """Heads without a part in seeing: nobody sees image tokens in them, and image tokens see nothing (YOPO).

    Weights on images are left out, and those on text stay as they are, so rows sum to less than 1. The full map of such
    layers is computed: the result without the speed.

    Args:
        heads: By layer; ``sparsight.lvlm.methods.calibration.searches.InactiveHeadVotes`` finds them.
        artefact: File, or its content, of that, in place of ``heads``.
    """

    def __init__(
        self, heads: Mapping[int, Sequence[int]] | None = None, artefact: str | Mapping[str, Any] | None = None
    ) -> None:
        if (heads is None) == (artefact is None):
            raise ValueError("give heads or an artefact")
        self.artefact: Artefact | None = None
        if artefact is not None:
            self.artefact = read_artefact(artefact, kind="InactiveHeadVotes")
        found = heads if self.artefact is None else self.artefact["values"]["heads"]
        self.heads = None if heads is None else {int(layer): list(chosen) for layer, chosen in heads.items()}
        self._heads = {int(layer): list(chosen) for layer, chosen in (found or {}).items() if chosen}

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return layer in self._heads

    def rows(self, queries: TokenMap) -> Tensor:
        """All."""
        return queries.present.any(0).nonzero()[:, 0]

    def weights(self, rows: Rows) -> Tensor:
        """Nothing on images, and nothing by images."""
        cut = torch.zeros(rows.old.shape[1], dtype=torch.bool, device=rows.old.device)
        cut[self._heads[rows.layer]] = True
        images = rows.keys.visual[:, None, None] | rows.queries.visual[:, None, :, None]
        return rows.old.masked_fill(cut[:, None, None] & images, 0.0)


class FeedForwardCut(FeedForwardEdit):
    """Image tokens use the first neurons of feed-forward parts alone (YOPO).

    They are computed apart from text, with less work in fact. Which neurons come first means something only once the
    model was trained so.

    Args:
        ratio: Share of neurons that image tokens use.
        first_layer: The first layer that is changed.
    """

    def __init__(self, ratio: float = 0.5, first_layer: int = 0) -> None:
        self.ratio, self.first_layer = share(ratio, name="ratio"), layers_from(first_layer)

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed."""
        return layer >= self.first_layer

    def feed(self, forward: Forward, module: nn.Module, hidden: Tensor, queries: TokenMap) -> Tensor:
        """Text as it was, image tokens by fewer neurons."""
        visual = queries.visual
        if not bool(visual.any()):
            return forward(hidden)
        few = fewer_neurons(module, hidden[visual], self.ratio)
        some = hidden.new_zeros(*hidden.shape[:2], few.shape[-1])
        if bool((~visual).any()):
            some = some.index_put((~visual).nonzero(as_tuple=True), forward(hidden[~visual][None])[0].to(some))
        return some.index_put(visual.nonzero(as_tuple=True), few.to(some))


def fewer_neurons(module: nn.Module, hidden: Tensor, ratio: float) -> Tensor:
    """What a gated feed-forward part answers (N, C) with the first share of its neurons.

    Raises:
        ValueError: It is none of plain linear layers of known names.
    """
    held = dict(module.named_children())
    for names in LINEARS:
        gate, up, down = (held.get(name) for name in names)
        if all(type(layer) is nn.Linear for layer in (gate, up, down)):
            assert isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(down, nn.Linear)
            count = max(int(gate.out_features * ratio + 1e-9), 1)
            act = held.get("act_fn", F.silu)
            inner = [F.linear(hidden, layer.weight[:count], _first(layer.bias, count)) for layer in (gate, up)]
            return F.linear(act(inner[0]) * inner[1], down.weight[:, :count], down.bias)
    raise ValueError(f"FeedForwardCut knows no neurons of {type(module).__name__}, which holds {', '.join(held)}")


def _first(bias: Tensor | None, count: int) -> Tensor | None:
    return None if bias is None else bias[:count]


class VisualExit(LayerPolicy):
    """All image tokens leave before a layer (YOPO's layer drop).

    Args:
        layer: Before which; the paper takes 20 of 32.
    """

    looks = False

    def __init__(self, layer: int = 20) -> None:
        self.layer = layers_from(layer, name="layer")

    def at(self, layer: int, depth: int) -> bool:
        """There."""
        return layer == self.layer

    def decide(self, sight: Sight) -> Decision:
        """No image token."""
        return Decision(~sight.tokens.visual)
