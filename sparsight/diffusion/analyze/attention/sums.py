"""Adding up what was measured, by timestep bucket and head, and what a person reads from the sums.

Shape legend: B batch, T buckets of timesteps, h heads, R distances.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.base import Grid
from sparsight.diffusion.analyze.attention.maps import coordinates
from sparsight.diffusion.analyze.attention.statistics import Measured

FIELD = 0.8
"""Share of the mass that a receptive field holds."""
WINDOWS = (3, 5, 7, 9, 13, 17, 25)
"""Sides of the windows whose mass stands in tables."""


class BucketSums:
    """Sums of numbers (B, ...) over the samples of each of so many buckets, in float64 on the CPU."""

    def __init__(self, buckets: int) -> None:
        self._sums: list[Tensor | None] = [None] * buckets
        self.count = [0] * buckets

    def add(self, values: Tensor, bucket_B: Tensor) -> None:
        """Add samples to their buckets; the last axis may grow from one batch to the next."""
        for bucket in bucket_B.unique().tolist():
            chosen = values[(bucket_B == bucket).to(values.device)]
            self._sums[bucket] = _grown(self._sums[bucket], chosen.double().sum(0).cpu())
            self.count[bucket] += len(chosen)

    def total(self, bucket: int) -> Tensor | None:
        """Sum of a bucket; none where no sample was in it."""
        return self._sums[bucket]

    def mean(self, bucket: int) -> Tensor | None:
        """Mean of a bucket; none where no sample was in it."""
        total = self._sums[bucket]
        return None if total is None else total / self.count[bucket]


def _grown(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum of two tensors of which either may have a longer last axis."""
    if total is None or total.ndim == 0:
        return more if total is None else total + more
    long, short = (total, more) if total.shape[-1] >= more.shape[-1] else (more, total)
    long = long.clone()
    long[..., : short.shape[-1]] += short
    return long


class SiteSums:
    """Everything that is known of one site's attention."""

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets
        self.means: dict[str, BucketSums] = {}
        self.mass, self.high_mass, self.pairs = (BucketSums(buckets) for _ in range(3))
        self.top_keys: dict[tuple[int, int], Counter[tuple[int, ...]]] = {}

    def add(self, measured: Measured, grid: Grid, bucket_B: Tensor) -> None:
        """Add a batch, whose samples are of these buckets."""
        for name, values in measured.means.items():
            self.means.setdefault(name, BucketSums(self.buckets)).add(values, bucket_B)
        self.mass.add(measured.mass, bucket_B)
        self.high_mass.add(measured.high_mass, bucket_B)
        self.pairs.add(measured.pairs.expand(len(bucket_B), -1), bucket_B)
        place = coordinates(grid, measured.top_key.device)[measured.top_key].tolist()
        for bucket, heads in zip(bucket_B.tolist(), place, strict=True):
            for head, where in enumerate(heads):
                self.top_keys.setdefault((bucket, head), Counter())[tuple(where)] += 1

    def samples(self, bucket: int) -> int:
        """How many samples of a bucket were looked at."""
        return self.mass.count[bucket]

    def row(self, bucket: int, head: int) -> dict[str, object]:
        """A line of the table for a bucket with samples: plain numbers, none where there is nothing to tell."""
        mass, high = self.curve(self.mass, bucket, head), self.curve(self.high_mass, bucket, head)
        values = {name: sums.mean(bucket) for name, sums in self.means.items()}
        numbers = {name: float(value[head]) for name, value in values.items() if value is not None}
        top, times = self.top_keys[bucket, head].most_common(1)[0]
        row: dict[str, object] = {
            "entropy": numbers["entropy"],
            "effective_keys": numbers["effective_keys"],
            "receptive_field": receptive_field(mass),
            "high_receptive_field": receptive_field(high),
            "decay": decay(self.per_key(self.mass, bucket, head), self.pair_counts(bucket)),
            "high_decay": decay(self.per_key(self.high_mass, bucket, head), self.pair_counts(bucket)),
        }
        row |= {f"mass_{k}x{k}": mass_within(mass, k) for k in WINDOWS}
        row |= {f"high_mass_{k}x{k}": mass_within(high, k) for k in WINDOWS}
        names = ("low_frequency_share", "rank", "outlier_tokens", "outlier_share", "top_key_share", "row_similarity")
        row |= {name: numbers[name] for name in names}
        row |= {"top_key": " ".join(map(str, top)), "top_key_in": times / self.samples(bucket)}
        return row | {"text_share": numbers.get("text_share")}

    def pair_counts(self, bucket: int) -> list[float]:
        """Pairs of query and key at each distance, a query."""
        found = self.pairs.mean(bucket)
        return [] if found is None else found.tolist()

    def curve(self, sums: BucketSums, bucket: int, head: int) -> list[float]:
        """Share of the mass at each distance; they sum to 1, or are all 0 where there is none."""
        found = sums.total(bucket)
        if found is None:
            return []
        total = float(found[head].sum())
        return (found[head] / total).tolist() if total > 0 else [0.0] * found.shape[-1]

    def even_field(self) -> int | None:
        """Receptive field of attention that is even over all keys."""
        counts = next((found for bucket in range(self.buckets) if (found := self.pair_counts(bucket))), [])
        return receptive_field([count / sum(counts) for count in counts])

    def per_key(self, sums: BucketSums, bucket: int, head: int) -> list[float | None]:
        """Mean mass of one key at each distance; none where there is no pair so far apart."""
        curve, counts = self.curve(sums, bucket, head), self.pair_counts(bucket)
        return [mass / count if count else None for mass, count in zip(curve, counts, strict=True)]


def mass_within(curve: Sequence[float], side: int) -> float:
    """Share of the mass inside side x side tokens around a query, by its share at each distance."""
    return sum(curve[: (side + 1) // 2])


def receptive_field(curve: Sequence[float]) -> int | None:
    """Side of the smallest window that holds ``FIELD`` of the mass; none where there is no mass."""
    within = 0.0
    for distance, share in enumerate(curve):
        within += share
        if within >= FIELD - 1e-9:
            return 2 * distance + 1
    return None


def decay(per_key: Sequence[float | None], counts: Sequence[float]) -> float | None:
    """Power p of the law distance^-p that comes closest to the mass of a key, pairs weighing alike, in logarithms.

    Args:
        per_key: Mean mass of a key at each distance, from 0, which is left out.
        counts: Pairs at each distance.

    Returns:
        None where fewer than two distances have any.
    """
    points = [
        (math.log(distance), math.log(mass), count)
        for distance, (mass, count) in enumerate(zip(per_key, counts, strict=True))
        if distance and mass
    ]
    if len(points) < 2:
        return None
    x, y, weight = torch.tensor(points, dtype=torch.float64).unbind(1)
    weight = weight / weight.sum()
    across = x - (weight * x).sum()
    return -float((weight * across * y).sum() / (weight * across.square()).sum())
