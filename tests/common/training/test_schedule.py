"""Schedules: their shapes at hand-computed points, monotony, orders."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.schedule import Schedule, in_order, spaced


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


class Line:
    """Seven sites in a row."""

    scores_before_training = True

    def sites(self) -> list[str]:
        return list("abcdefg")

    def distance(self, one: str, other: str) -> int:
        return abs(ord(one) - ord(other))

    def score(self) -> dict[str, float]:
        return {}

    def retire(self, names: object) -> None:
        pass


def test_a_site_that_would_leave_no_room_for_the_last_ones_stays() -> None:
    def take(order: str, count: int, **options: Any) -> str:
        return "".join(spaced(order, count, spacing=2, module=Line(), **({"taken": ""} | options)))

    assert take("bcdefga", 1) == "b"
    assert take("dbcefga", 3) == "dbf"
    assert take("bdcefga", 4) == "cega", "only every second one from the first on makes four"
    assert take("bcdefga", 1, rest=3) == "c"
    assert take("bcdefga", 1, taken="d", rest=1) == "b"
    assert take("abc", 2) == "ac"
    with pytest.raises(ConfigurationError, match="spacing 2 leaves room for 4 of 5: lower"):
        take("abcdefg", 5)
    with pytest.raises(ConfigurationError, match="room for 3 of 4: lower"):
        take("bcdefga", 1, taken="d", rest=2)
    with pytest.raises(ConfigurationError, match="room for 1 of 2: lower"):
        take("ab", 2)
