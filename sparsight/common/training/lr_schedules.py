"""Learning-rate schedules by name; transformers computes them, for both wings."""

from __future__ import annotations

from dataclasses import dataclass

from sparsight.common.errors import require

SCHEDULES = (  # of transformers.SchedulerType, written out: to check a configuration takes no import of it
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)


@dataclass(frozen=True, kw_only=True)
class LearningRateSchedule:
    """How the learning rate goes in a run without stages; stages have theirs.

    Args:
        name: One of transformers' schedules, e.g. ``constant_with_warmup`` or ``cosine``.
        warmup_steps: Steps over which the learning rate rises.

    Raises:
        ValueError: The schedule is unknown, or ``warmup_steps`` is out of range.
    """

    name: str = "constant_with_warmup"
    warmup_steps: int = 500

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.name in SCHEDULES, "name", repr(self.name), ", ".join(SCHEDULES))
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
