"""Learning-rate schedules by name; transformers computes them, for both wings."""

from __future__ import annotations

SCHEDULES = (  # of transformers.SchedulerType, written out: to check a configuration takes no import of it
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)
