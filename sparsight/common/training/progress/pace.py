"""How long the rest of a run takes, from how long its steps took so far."""

from __future__ import annotations


class Pace:
    """Measures the steps of a stage, with the validations between them; stages differ in what a step costs."""

    def __init__(self) -> None:
        self._stage = -1
        self._first = self._last = (0, 0.0)  # step, and seconds of the clock when it was done

    def reached(self, step: int, *, stage: int, now: float) -> None:
        """Tell that ``step`` steps have been taken, at ``now`` seconds of a clock that never goes back.

        The first step of a stage does not count: it makes ready what the others find.
        """
        if stage != self._stage:
            self._stage, self._first = stage, (step, now)
        self._last = (step, now)

    def left(self, steps: float) -> float | None:
        """Seconds until ``steps`` have been taken; None while nothing was measured, or where nothing ends the run."""
        (first, begin), (last, end) = self._first, self._last
        if last == first or steps == float("inf"):
            return None
        return max(steps - last, 0.0) * (end - begin) / (last - first)
