"""What is measured of the attention maps of one site: sums for every sample and head, to be added up by timestep.

Of a joint site all but the share of text is of the image's tokens alone, as if there were no text.

Shape legend: B batch, h heads, N tokens of the image, n rows that are looked at, R distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blocks.base import Layout
from sparsight.diffusion.analyze.attention.high_pass import high_passed
from sparsight.diffusion.analyze.attention.maps import CHUNK, Maps, ring_count, rings, sums_by_ring
from sparsight.diffusion.analyze.attention.rank import COLUMNS, projected, ranks

OUTLIER = 10.0
"""A key is an outlier if its mean attention is more than so many times that of an even distribution."""


@dataclass(frozen=True)
class Measured:
    """Of one batch at one site; means over the queries of a sample, unless it says otherwise.

    Attributes:
        means: By name, (B, h).
        mass: Attention by distance, (B, h, R); all of them sum to 1.
        high_mass: Absolute value of the maps' high frequencies by distance, (B, h, R).
        pairs: Pairs of query and key at each distance, over the number of queries, (R,).
        top_key: The token that gets most, (B, h).
    """

    means: dict[str, Tensor]
    mass: Tensor
    high_mass: Tensor
    pairs: Tensor
    top_key: Tensor


@torch.no_grad()
def measure(q: Tensor, k: Tensor, layout: Layout, scale: float, *, queries: int) -> Measured:
    """Measure the maps of queries and keys (B, h, tokens, d), a few samples at a time."""
    q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
    wide = q.shape[1] * layout.grid.tokens * COLUMNS  # numbers of one sample's projection
    most = max(1, CHUNK // wide)
    parts = [
        _measured(Maps(one_q, one_k, layout, scale, queries=queries))
        for one_q, one_k in zip(q.split(most), k.split(most), strict=True)
    ]
    return Measured(
        means={name: torch.cat([part.means[name] for part in parts]) for name in parts[0].means},
        mass=torch.cat([part.mass for part in parts]),
        high_mass=torch.cat([part.high_mass for part in parts]),
        pairs=parts[0].pairs,
        top_key=torch.cat([part.top_key for part in parts]),
    )


def _measured(maps: Maps) -> Measured:
    count, queries, tokens = ring_count(maps.grid), len(maps.index_n), maps.grid.tokens
    names = ("entropy", "effective_keys", "low_frequency_share")
    sums = {name: maps.zeros() for name in names}
    directions = maps.zeros(tokens)
    mass, high_mass, received, energy = maps.zeros(count), maps.zeros(count), maps.zeros(tokens), maps.zeros()
    pairs = torch.zeros(count, dtype=torch.float64, device=maps.device)
    columns, sketches = projected(maps), []
    for rows in maps:
        ring_cN = rings(maps.grid, rows.index_c)
        pairs += torch.bincount(ring_cN.flatten(), minlength=count)
        mass += sums_by_ring(rows.weights, ring_cN, count)
        received += rows.weights.sum(-2)
        sketches.append(rows.weights @ columns)
        sums["entropy"] += rows.entropy.sum(-1)
        sums["effective_keys"] += rows.entropy.exp().sum(-1)
        norms = torch.linalg.vector_norm(rows.weights, dim=-1)
        squares = norms.square()
        directions += (rows.weights / norms[..., None]).sum(-2)
        energy += squares.sum(-1)
        if rows.text is not None:
            sums["text_share"] = sums.get("text_share", 0) + rows.text.sum(-1)
        high = high_passed(rows.weights, maps.grid)
        sums["low_frequency_share"] += (1 - torch.linalg.vector_norm(high, dim=-1).square() / squares).sum(-1)
        high_mass += sums_by_ring(high.abs_(), ring_cN, count)
    means = {name: value / queries for name, value in sums.items()}
    received /= queries
    outlying = received * (received > OUTLIER / tokens)
    top = received.max(-1)
    means |= {
        "outlier_tokens": (outlying > 0).sum(-1).to(received.dtype),
        "outlier_share": outlying.sum(-1),
        "top_key_share": top.values,
        "row_similarity": (directions * received).sum(-1) / queries / torch.linalg.vector_norm(received, dim=-1),
        "rank": ranks(maps, torch.cat(sketches, -2), energy),
    }
    return Measured(means, mass / queries, high_mass / queries, pairs / queries, top.indices)
