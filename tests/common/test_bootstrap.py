"""Resampling against its definition and against known distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from sparsight.common.bootstrap import compare, interval, resampled_means, seed_of


def test_resamples_are_means_of_drawn_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(7, 2))
    means = resampled_means(rows, resamples=50, seed=3)
    marks = resampled_means(np.eye(7), resamples=50, seed=3) * 7  # how often each row was drawn
    assert np.allclose(marks, marks.round()) and np.allclose(marks.sum(1), 7)
    assert len(np.unique(marks.round(), axis=0)) > 40
    np.testing.assert_allclose(means, marks @ rows / 7, rtol=1e-12)


def test_equal_seeds_draw_equal_rows_and_more_resamples_begin_alike() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 1))
    first = resampled_means(rows, resamples=20, seed=5)
    np.testing.assert_array_equal(first, resampled_means(rows, resamples=40, seed=5)[:20])
    assert not np.allclose(first, resampled_means(rows, resamples=20, seed=6))
    assert seed_of("a") == seed_of("a") != seed_of("b") != seed_of("b", seed=1)


def test_the_spread_of_resamples_is_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=(400, 1))
    means = resampled_means(values, resamples=4000, seed=0)
    assert means.mean() == pytest.approx(values.mean(), abs=0.003)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.04)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        answers = rng.random((150, 1)) < 0.7
        low, high = interval(resampled_means(answers, resamples=300, seed=trial)[:, 0], level=0.9)
        held += low <= 0.7 <= high
    assert 0.86 < held / 400 < 0.94


def test_interval_by_hand() -> None:
    assert interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))
    assert interval([math.nan, *range(101)], level=0.5) == pytest.approx((25, 75))
    assert all(math.isnan(end) for end in interval([math.nan]))


def test_pairs_are_compared_in_the_same_resamples() -> None:
    rng = np.random.default_rng(4)
    theirs = rng.random((300, 1)) < 0.6
    ours = theirs | (rng.random((300, 1)) < 0.05)  # right wherever they are, and a little more
    ours_R, theirs_R = (resampled_means(values, resamples=500, seed=9)[:, 0] for values in (ours, theirs))
    paired = compare(ours_R, theirs_R)
    assert 0 < paired.difference.low < float(ours.mean() - theirs.mean()) < paired.difference.high
    assert paired.ratio is not None and 1 < paired.ratio.low < ours.mean() / theirs.mean() < paired.ratio.high
    assert paired.higher == 1
    apart = compare(ours_R, resampled_means(theirs, resamples=500, seed=10)[:, 0])
    assert apart.difference.low < 0 < apart.difference.high  # without pairs it does not show


def test_comparison_by_hand() -> None:
    paired = compare([1.0, 2, 3, math.nan], [1.0, 1, 4, 1], level=1)
    assert (paired.difference, paired.ratio) == ((-1, 1), (0.75, 2))
    assert paired.higher == 0.5
    assert compare([0.0, 1], [0.0, 1]).ratio is None
    with pytest.raises(ValueError, match="no pairs"):
        compare([0.0], [0.0, 1])


def test_values_must_be_rows() -> None:
    for values in (np.zeros(3), np.zeros((0, 1))):
        with pytest.raises(ValueError, match=r"\(N, K\), got shape"):
            resampled_means(values, resamples=2, seed=0)


def test_intervals_are_scipys() -> None:
    """Both draw at random: ends agree as far as resamples move them, and so do pairs."""
    rng = np.random.default_rng(7)
    ours, theirs = rng.gamma(2.0, size=(200, 1)), rng.gamma(2.0, size=(200, 1)) + 0.3
    options: dict[str, Any] = {"n_resamples": 4000, "method": "percentile", "rng": 1, "vectorized": True}
    expected = bootstrap((ours[:, 0],), np.mean, **options).confidence_interval
    found = interval(resampled_means(ours, resamples=4000, seed=0)[:, 0])
    width = found.high - found.low
    assert found == pytest.approx((expected.low, expected.high), abs=0.06 * width)
    pairs = [resampled_means(values, resamples=4000, seed=0)[:, 0] for values in (ours, theirs)]
    for statistic, paired in (
        (lambda a, b, axis: a.mean(axis) - b.mean(axis), compare(*pairs).difference),
        (lambda a, b, axis: a.mean(axis) / b.mean(axis), compare(*pairs).ratio),
    ):
        expected = bootstrap((ours[:, 0], theirs[:, 0]), statistic, paired=True, **options).confidence_interval
        assert paired is not None
        width = paired.high - paired.low
        assert paired == pytest.approx((expected.low, expected.high), abs=0.06 * width)
