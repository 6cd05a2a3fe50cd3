"""Bootstrap of scores: how far they move when the samples are drawn again (Efron, 1979), for one run or two in pairs.

Shape legend: N samples, K numbers of a sample, R resamples.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Two runs on the same samples.

    Attributes:
        difference: Of ours less theirs.
        ratio: Of ours to theirs; ``None`` if theirs is 0 or less in a resample.
        higher: Share of resamples in which ours is higher, equal ones counted half.
    """

    difference: Interval
    ratio: Interval | None
    higher: float


def seed_of(name: str, *, seed: int = 0) -> int:
    """A seed of its own for everything that is drawn independently, e.g. each task; equal on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def resampled_means(values_NK: ArrayLike, *, resamples: int, seed: int) -> Floats:
    """Means of resamples, (R, K): each draws N of the N rows with replacement.

    Equal N and seed draw the same rows, whatever the values: so two runs on the same samples stay pairs. Rows must be
    independent: bring repeated runs of a sample, or the questions of a dialogue, to one row first.

    Raises:
        ValueError: There are no rows, or they are not rows.
    """
    values = np.asarray(values_NK, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values must be one or more rows of numbers, (N, K), got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for number in range(resamples):
        # counts instead of gathered rows: no copy of the values for each resample
        counts_N = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
        means[number] = counts_N.astype(np.float64) @ values
    return means / len(values)


def interval(values_R: ArrayLike, *, level: float = 0.95) -> Interval:
    """Percentile interval; resamples whose value is not defined (NaN) are left out, and (NaN, NaN) if none is."""
    values = np.asarray(values_R, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def compare(ours_R: ArrayLike, theirs_R: ArrayLike, *, level: float = 0.95) -> Comparison:
    """Two scores of the same resamples.

    Raises:
        ValueError: They are not equally many.
    """
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (ours_R, theirs_R))
    if ours.shape != theirs.shape:
        raise ValueError(f"scores of {ours.shape} and {theirs.shape} resamples are no pairs")
    defined = ~np.isnan(ours - theirs)
    ours, theirs = ours[defined], theirs[defined]
    difference = ours - theirs
    higher = float(((difference > 0) + 0.5 * (difference == 0)).mean()) if len(difference) else np.nan
    ratio = interval(ours / theirs, level=level) if (theirs > 0).all() else None
    return Comparison(interval(difference, level=level), ratio, higher)
