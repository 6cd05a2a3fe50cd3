"""Which samples a process draws for the metrics, and under which conditions.

Samples are dealt out one by one, as the datamodules deal records: process r of W has positions r, r + W, r + 2 W ...
All processes draw equally many, so that none waits for ever in a collective forward pass; what is drawn beyond
``num_samples`` is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Draw:
    """One sample: its id, its label or caption, and whether metrics get to see it."""

    id: int
    condition: Any
    counted: bool


class OwnDraws:
    """The draws of one process.

    Args:
        num_samples: Samples that all processes draw together.
        processes: Their number W.
        rank: Number of this process.
    """

    def __init__(self, num_samples: int, *, processes: int, rank: int) -> None:
        self.num_samples = num_samples
        self.positions = range(rank, -(-num_samples // processes) * processes, processes)
        self._draws: list[Draw] = []

    @property
    def complete(self) -> bool:
        """Whether no more are wanted."""
        return len(self._draws) == len(self.positions)

    @property
    def counted(self) -> int:
        """How many of them count."""
        return sum(draw.counted for draw in self._draws)

    def fill(self, conditions: Sequence[Any]) -> None:
        """Take ids 0 to ``num_samples - 1`` with these conditions, repeated as often as needed."""
        ids = [position % self.num_samples for position in self.positions]
        self.add(ids, [conditions[i % len(conditions)] for i in ids])

    def add(self, ids: Iterable[int], conditions: Iterable[Any]) -> None:
        """Take this process's next records of the data, as far as they are wanted."""
        for i, condition in zip(ids, conditions, strict=True):
            if not self.complete:
                self._draws.append(Draw(i, condition, self.positions[len(self._draws)] < self.num_samples))

    def all(self) -> list[Draw]:
        """As many as the other processes have: the last one again where the data had one record less here."""
        short = len(self.positions) - len(self._draws)
        return self._draws + [replace(self._draws[-1], counted=False)] * short
