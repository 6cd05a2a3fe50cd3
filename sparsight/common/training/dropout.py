"""Dropout that a resumed run repeats."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor


def seed_dropout(step: int, index_B: Tensor) -> None:
    """Seed torch's default generators, from which dropout draws, by (seed of the run, step, first sample).

    Neither how often they were drawn from nor the process matters then.

    Args:
        step: Optimiser step.
        index_B: Global sample ids of the batch.
    """
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # Lightning's `seed_everything`
    (drawn,) = np.random.SeedSequence([seed, step, int(index_B[0])]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn))
