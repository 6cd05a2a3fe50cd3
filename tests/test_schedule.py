"""Schedules: their shapes at hand-computed points, monotony, orders."""

from __future__ import annotations

import math

import pytest

from sparsight.schedule import Schedule, in_order


@pytest.mark.parametrize("shape", ["one_shot", "linear", "cubic", "exponential"])
def test_a_schedule_rises_from_none_to_all(shape: str) -> None:
    schedule = Schedule(shape, 10, 50)  # type: ignore[arg-type]
    counts = [schedule(step, 16) for step in range(80)]
    assert counts == sorted(counts)
    assert counts[9] == 0 and counts[50] == counts[79] == 16
    assert counts[10] == (16 if shape == "one_shot" else 0)
    assert schedule(30, 0) == 0


def test_shapes_at_half_way() -> None:
    at_half = {shape: Schedule(shape, 0, 100)(50, 1000) for shape in ("linear", "cubic", "exponential")}  # type: ignore[arg-type]
    assert at_half == {
        "linear": 500,
        "cubic": 875,
        "exponential": math.floor(1000 * (1 - math.exp(-2.5)) / (1 - math.exp(-5))),
    }


@pytest.mark.parametrize("options", [("square", 0, 9), ("linear", 5, 5), ("cubic", -1, 4)])
def test_impossible_schedules_are_refused(options: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match=r"shape is one of|needs 0 <= begin < end"):
        Schedule(*options)  # type: ignore[arg-type]


def test_orders() -> None:
    sites = ["a", "b", "c"]
    assert in_order(sites, "first", None) == ["a", "b", "c"]
    assert in_order(sites, "last", None) == ["c", "b", "a"]
    assert in_order(sites, "score", {"a": 2.0, "b": 1.0, "c": 1.0}) == ["b", "c", "a"]
    assert in_order(sites, ["c", "a"], None) == ["c", "a"]
