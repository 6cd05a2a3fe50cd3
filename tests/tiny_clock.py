"""A clock that only its owner moves: what is timed by it takes the same time on every machine."""

from __future__ import annotations


class Clock:
    """Stands in for the module ``time`` where a test measures: sleeping moves the clock and takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Seconds since the start."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
