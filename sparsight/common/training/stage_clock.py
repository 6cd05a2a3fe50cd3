"""Which stage of a run an optimiser step belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable


class Timed(Protocol):
    """A stage that lasts a number of optimiser steps."""

    steps: int

    @property
    def objective(self) -> str:
        """What it is about, in words."""


AnyStage = TypeVar("AnyStage", bound=Timed)


@dataclass
class StageClock(Generic[AnyStage]):
    """Stages, one after the other.

    Raises:
        ValueError: There is none.
    """

    stages: Sequence[AnyStage]
    ends: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("give at least one stage, with its `steps`")
        self.ends = [sum(stage.steps for stage in self.stages[: i + 1]) for i in range(len(self.stages))]

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.ends[-1]

    def done(self, step: int) -> list[int]:
        """Steps of each stage that have been taken when ``step`` have been taken in all."""
        taken, starts = [], [0, *self.ends[:-1]]
        for stage, start in zip(self.stages, starts, strict=True):
            taken.append(min(max(step - start, 0), stage.steps))
        return taken

    def index(self, step: int) -> int:
        """Index of the stage that trains at ``step``; the last one afterwards."""
        return next((i for i, end in enumerate(self.ends) if step < end), len(self.ends) - 1)


@runtime_checkable
class Staged(Protocol):
    """A module that trains in stages."""

    clock: StageClock[Any]


def stage_index(module: Any, step: int) -> int:
    """Index of the stage that trains at a step; 0 for a module without stages."""
    return module.clock.index(step) if isinstance(module, Staged) else 0
