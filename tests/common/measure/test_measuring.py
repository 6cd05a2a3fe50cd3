"""Clocks and memory, on work whose length and size are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from sparsight.common.disk.files import write_whole
from sparsight.common.measure import latency
from sparsight.common.measure.contest import Contest, extrapolate
from sparsight.common.measure.latency import Timing, TooSlow, time_in_turn, timing_of
from sparsight.common.measure.memory import held_bytes, peak_bytes
from sparsight.common.tables import format_table, short, whole
from tests.tiny_clock import Clock

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_calls_are_timed_in_turn_after_warm_up(clock: Clock) -> None:
    order: list[str] = []

    def sleep(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (order.append(name), clock.sleep(seconds))[1]

    timings = time_in_turn({"a": sleep("a", 0.002), "b": sleep("b", 0.02)}, device=CPU, runs=5, max_seconds=10)
    assert order[-10:] == ["a", "b"] * 5
    assert order.index("b") >= 1
    assert len(order) > 10
    for name, seconds in (("a", 0.002), ("b", 0.02)):
        timing = timings[name]
        assert isinstance(timing, Timing)
        assert timing.runs == 5
        assert (timing.p10, timing.median, timing.p90) == pytest.approx((seconds, seconds, seconds))


def test_time_is_bounded(clock: Clock) -> None:
    calls = {"slow": lambda: clock.sleep(6), "fast": lambda: clock.sleep(2.5), "never": lambda: clock.sleep(30)}
    timings = time_in_turn(calls, device=CPU, runs=1000, max_seconds=24)
    assert timings["never"] == TooSlow(30)
    assert timings["fast"] == Timing(2.5, 2.5, 2.5, runs=10)
    assert timings["slow"] == Timing(6, 6, 6, runs=4)
    assert clock.now == 30 + 10 * 2.5 + 2.5 + 4 * 6 + 6  # what came before the timed runs is one run each


def test_processor_time_leaves_out_what_is_waited_for() -> None:
    timings = time_in_turn({"wait": partial(time.sleep, 0.05)}, device=CPU, runs=3, processor=True)
    assert isinstance(timings["wait"], Timing)
    assert timings["wait"].median < 0.025


def test_percentiles() -> None:
    timing = timing_of([float(i) for i in range(11)])
    assert (timing.median, timing.p10, timing.p90, timing.runs) == (5, 1, 9, 11)
    assert timing_of([3.0]) == Timing(3.0, 3.0, 3.0, 1)


def test_peak_memory_of_temporaries() -> None:
    mib = 2**20
    kept = torch.zeros(mib)  # held before: not counted

    def call() -> None:
        first = kept + 1  # 4 MiB
        second = first * 2  # 8 MiB
        del first
        (second - 1).sum()  # 8 MiB again

    assert 8 * mib <= peak_bytes(call, CPU) < 8 * mib + 1024


def test_peak_memory_counts_what_a_backward_pass_needs() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)))
    inputs = torch.randn(4096, 64)
    size = inputs.numel() * 4

    def forward() -> None:
        with torch.no_grad():
            layers(inputs)

    assert 2 * size <= peak_bytes(forward, CPU) < 3.1 * size
    assert peak_bytes(lambda: layers(inputs).sum().backward(), CPU) >= 4 * size


def test_shared_tensors_are_held_once() -> None:
    one, two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    assert held_bytes(one, two) == 2 * held_bytes(one) == 512
    two.weight = one.weight
    assert held_bytes(one, two) == 256


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(10, 3.0)], 12.0),
        ([(5, 1.0), (10, 2.0)], 4.0),
        ([(5, 1.0), (10, 4.0)], 16.0),
        ([(5, 1.0), (10, 9.0)], 36.0),
        ([(5, 1.0), (10, 1.1)], 2.2),
    ],
)
def test_extrapolation_stays_between_linear_and_quadratic(points: list[tuple[int, float]], expected: float) -> None:
    assert extrapolate(points, 20) == pytest.approx(expected)


def test_a_contest_skips_what_is_refused_too_slow_or_too_large_and_says_why(clock: Clock) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("no more")

    contest = Contest(CPU, runs=3, max_seconds=40)
    slow = {"slow": lambda: clock.sleep(6)}
    found = contest.measure(10, {"bad": "is wrong", "full": full, **slow})
    assert found["bad"].skipped == "is wrong"
    assert found["full"].skipped == "out of memory"
    assert found["slow"].timing is not None
    started = clock.now
    assert "would take about 24.0 s" in contest.measure(20, slow)["slow"].skipped  # 4 times 6 s; 10 s are allowed
    assert clock.now == started, "it was not run"


def test_a_contest_foresees_memory() -> None:
    contest = Contest(CPU, runs=3, max_seconds=1e9)
    call = {"large": lambda: torch.zeros(2**18)}  # 1 MiB
    assert contest.measure(1, call)["large"].peak == 2**20
    assert "GiB are free" in contest.measure(10**4, call)["large"].skipped  # as a square: 100 TiB


def test_a_cold_start_is_not_in_the_memory() -> None:
    for cold_start, expected in ((True, 2**20), (False, 2**23)):
        calls = iter([2**21])  # floats of the first call; 2^18 after that
        contest = Contest(CPU, runs=3, max_seconds=60, cold_start=cold_start)
        measured = contest.measure(1, {"tunes itself": lambda calls=calls: torch.zeros(next(calls, 2**18))})  # type: ignore[misc]
        assert measured["tunes itself"].peak == expected


def test_other_errors_are_not_swallowed() -> None:
    def broken() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Contest(CPU, runs=3, max_seconds=1).measure(1, {"broken": broken})


def test_numbers_and_tables() -> None:
    assert [short(n) for n in (0, 12, 696, 1090, 24826900000, 5.5e12)] == [
        "0",
        "12",
        "696",
        "1.09 k",
        "24.8 G",
        "5.50 T",
    ]
    assert format_table([{"name": "a", "n": "1"}, {"name": "long", "n": "20"}]).splitlines() == [
        "name   n",
        "----  --",
        "a      1",
        "long  20",
    ]
    row = {"name": "a", "pass": "b", "one": "x" * 9, "two": "x" * 9}
    assert format_table([row], width=25, keep=2).splitlines() == [
        "name  pass  one",
        "----  ----  ---------",
        "a     b     xxxxxxxxx",
        "",
        "name  pass  two",
        "----  ----  ---------",
        "a     b     xxxxxxxxx",
    ]
    assert len(format_table([row], width=32, keep=2).splitlines()) == 3


def test_a_file_appears_whole_or_not_at_all(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def broken(path) -> None:  # type: ignore[no-untyped-def]
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "sub" / "x.txt", broken)
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.gpu
def test_peak_memory_and_time_on_cuda() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    assert peak_bytes(lambda: x + 1, device) == x.numel() * 4
    timings = time_in_turn({"product": lambda: x @ x @ x, "sum": lambda: x + x}, device=device)
    assert timings["product"].median > timings["sum"].median  # type: ignore[union-attr]


def test_times_are_written_without_exponents() -> None:
    assert [whole(value) for value in (2713.4, 99.96, 99.9, 0.1234, 914.0)] == ["2,713", "100", "99.9", "0.123", "914"]
