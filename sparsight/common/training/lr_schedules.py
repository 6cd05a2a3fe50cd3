"""Learning-rate schedules by name; diffusers computes them."""

from __future__ import annotations

SCHEDULES = (  # of diffusers.optimization.SchedulerType, written out: to check a configuration takes no import of it
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)
