"""Time and memory of two candidates at growing sizes, with a budget: what would be too slow or too large is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sparsight.common.measure.latency import Call, Timing, TooSlow, longest_run, time_in_turn
from sparsight.common.measure.memory import free_bytes, is_out_of_memory, peak_bytes

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Measured:
    """One candidate at one size: time (seconds) and peak memory (bytes), or why they are missing."""

    timing: Timing | None = None
    peak: int | None = None
    skipped: str = ""


@dataclass
class Contest:
    """Measures the same candidates at one size after another, smallest first.

    Args:
        device: Where the candidates compute.
        runs: Timed runs of each.
        max_seconds: Time for all runs of one candidate at one size.
        processor: Count processor time where the candidates compute on a CPU.
        cold_start: Run every candidate once before its memory is measured, for those that compile or tune themselves.
    """

    device: torch.device
    runs: int
    max_seconds: float
    processor: bool = False
    cold_start: bool = False
    _seconds: dict[str, Points] = field(default_factory=dict)
    _bytes: dict[str, Points] = field(default_factory=dict)

    def measure(self, tokens: int, calls: Mapping[str, Call | str]) -> dict[str, Measured]:
        """Measure every candidate at one size; a string in the place of a call says why it must not be run."""
        refused = {name: call if isinstance(call, str) else self._foresee(name, tokens) for name, call in calls.items()}
        peaks: dict[str, int] = {}
        for name, call in calls.items():
            if not refused[name] and not isinstance(call, str):
                try:
                    if self.cold_start:
                        call()
                    peaks[name] = peak_bytes(call, self.device)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    refused[name] = "out of memory"
        timed = {name: call for name, call in calls.items() if not refused[name] and not isinstance(call, str)}
        timings = time_in_turn(
            timed, device=self.device, runs=self.runs, max_seconds=self.max_seconds, processor=self.processor
        )
        return {name: self._noted(name, tokens, peaks.get(name), timings.get(name), refused[name]) for name in calls}

    def _foresee(self, name: str, tokens: int) -> str:
        """Why a candidate would fail at this size, judging by the smaller ones; empty if it would not."""
        seconds = extrapolate(self._seconds.get(name, []), tokens)
        if seconds > longest_run(self.max_seconds):
            return f"one run would take about {seconds:.1f} s, {self._allowed()}"
        wanted, free = extrapolate(self._bytes.get(name, []), tokens), free_bytes(self.device)
        if wanted > free:
            return f"would need about {wanted / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        return ""

    def _noted(
        self, name: str, tokens: int, peak: int | None, timing: Timing | TooSlow | None, refusal: str
    ) -> Measured:
        if peak is not None:
            self._bytes.setdefault(name, []).append((tokens, peak))
        if timing is None:
            return Measured(None, peak, refusal)
        seconds = timing.seconds if isinstance(timing, TooSlow) else timing.median
        self._seconds.setdefault(name, []).append((tokens, seconds))
        if isinstance(timing, TooSlow):
            return Measured(None, peak, f"one run takes {seconds:.1f} s, {self._allowed()}")
        return Measured(timing, peak)

    def _allowed(self) -> str:
        return f"more than a quarter of max_seconds ({self.max_seconds:g})"


def extrapolate(points: Points, at: int) -> float:
    """Continue (size, value) points as a power law, between linear and quadratic; 0 without points."""
    if not points:
        return 0.0
    (size, value), power = points[-1], 2.0
    if len(points) > 1 and 0 < points[-2][1] < value and points[-2][0] < size:
        power = math.log(value / points[-2][1]) / math.log(size / points[-2][0])
    return value * (at / size) ** min(max(power, 1.0), 2.0)
