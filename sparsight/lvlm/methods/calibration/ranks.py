"""Which layers' attention has a low rank, so that tokens repeat each other in them (gamma-MoD, arXiv 2410.13859).

Shape legend: h heads, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from blocks.tokens.attending import Attending
from blocks.tokens.base import share
from blocks.tokens.token_map import ANSWER
from sparsight.lvlm.methods.calibration.searches import Calibrator


class LowRankLayers(Calibrator):
    """Layers for ``GammaMoD``: those whose attention maps have the lowest rank (ARank).

    The rank is that of the whole map of a prompt with zeros on its diagonal, mean over heads and samples. Each map
    costs a singular value decomposition. (The authors' code prints ranks, and takes all layers but
    four whatever they are.)

    Args:
        share_of_layers: Share of the layers that are taken.
        first_layer: Layers before are never taken, nor is the last one.
    """

    def __init__(self, share_of_layers: float = 0.5, first_layer: int = 1) -> None:
        self.share, self.first_layer = share(share_of_layers, name="share_of_layers"), first_layer

    def begin(self, config: Any) -> None:
        """Nothing was seen."""
        self.depth = config.num_hidden_layers
        self.found: dict[int, list[float]] = {}

    def see(self, attending: Attending, layer: int) -> None:
        """Mean rank of each sample's maps."""
        tokens = attending.queries
        for sample, asked in enumerate(tokens.present & (tokens.kind != ANSWER)):
            places = asked.nonzero()[:, 0]
            one = Attending(*(_of_sample(part, sample) for part in attending))
            map_hTT = one.within(places).weights()[0][..., places]
            map_hTT = map_hTT.masked_fill(torch.eye(len(places), dtype=torch.bool, device=places.device), 0.0)
            rank = torch.linalg.matrix_rank(map_hTT).float().mean()
            self.found.setdefault(layer, []).append(float(rank))

    def values(self) -> dict[str, Any]:
        """Ranks of all layers with attention, and the lowest."""
        if not self.found:
            raise ValueError("LowRankLayers saw no attention")
        ranks = {layer: sum(seen) / len(seen) for layer, seen in sorted(self.found.items())}
        eligible = [layer for layer in ranks if self.first_layer <= layer < self.depth - 1]
        count = min(max(int(self.depth * self.share + 1e-9), 1), len(eligible))
        lowest = sorted(eligible, key=lambda layer: (ranks[layer], layer))[:count]
        return {"layers": sorted(lowest), "ranks": {str(layer): rank for layer, rank in ranks.items()}}


def _of_sample(part: Any, sample: int) -> Any:
    """One sample of a tensor, of a map of tokens or of a pair of tables, some of which are the same for all."""
    if isinstance(part, torch.Tensor):
        return part[sample : sample + 1] if len(part) > 1 else part
    if isinstance(part, tuple):
        parts = [_of_sample(each, sample) for each in part]
        return type(part)(*parts) if type(part) is not tuple else tuple(parts)
    return part
