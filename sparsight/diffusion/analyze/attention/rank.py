"""How many directions an attention map needs, estimated without the map.

A random projection finds the directions that hold most of its energy (the sum of its squares), and a second look at its
rows tells how much each of them holds: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.1 and 5.1. Exact
where the map has no more rows than the projection has columns.

Shape legend: B batch, h heads, N tokens, n rows of the map, s columns of the projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsight.diffusion.analyze.attention.maps import Maps

COLUMNS = 64
SHARE = 0.9
"""Of the energy, that so many directions hold."""


def projected(maps: Maps) -> Tensor:
    """The random projection's columns: (N, s)."""
    drawn = torch.randn(maps.grid.tokens, COLUMNS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(maps.zeros(1))


def ranks(maps: Maps, sketch: Tensor, energy: Tensor) -> Tensor:
    """Fewest directions that hold ``SHARE`` of each map's energy, (B, h); ``COLUMNS`` where more are needed.

    Args:
        maps: Looked at a second time.
        sketch: The maps times ``projected``: (B, h, n, s).
        energy: Sum of the squares of each map, (B, h).
    """
    basis = torch.linalg.qr(sketch).Q  # (B, h, n, s), s cut to n
    inside = maps.zeros(basis.shape[-1], maps.grid.tokens)
    done = 0
    for rows in maps:
        count = len(rows.index_c)
        inside += basis[:, :, done : done + count].mT @ rows.weights
        done += count
    held = torch.linalg.eigvalsh(inside @ inside.mT).flip(-1).clamp_min(0).cumsum(-1)
    enough = held >= SHARE * energy[..., None] * (1 - 1e-6)
    return torch.where(enough.any(-1), enough.int().argmax(-1) + 1, COLUMNS).to(energy.dtype)
