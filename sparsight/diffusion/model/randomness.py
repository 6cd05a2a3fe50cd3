"""Noise that depends on (seed, step, sample) alone, so that resuming and splitting over processes change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for; equal (seed, step, sample) give unrelated numbers in different streams."""

    NOISE = 0
    TIMESTEP = 1
    CONDITION_DROPOUT = 2
    START = 3
    LABEL = 4


def _philox(seed: int, stream: Stream, step: int, index: int) -> np.random.Generator:
    # Philox counts upwards in the lowest word, so the high words can hold what names the draw.
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, index, step]))


def sample_normal(shape: Sequence[int], *, seed: int, step: int, index: Tensor, stream: Stream) -> Tensor:
    """Draw standard normal numbers on the CPU, float32.

    Args:
        shape: Shape of one sample, without the batch.
        seed: The run's seed.
        step: Optimiser step, or 0 for draws that do not depend on it.
        index: Global sample ids, (B,).
        stream: Purpose of the draw.

    Returns:
        Batch of samples, (B, ...).
    """
    draws = [
        _philox(seed, stream, step, int(i)).standard_normal(tuple(shape), dtype=np.float32) for i in index.tolist()
    ]
    return torch.from_numpy(np.stack(draws))


def sample_uniform(*, seed: int, step: int, index: Tensor, stream: Stream) -> Tensor:
    """One uniform number in [0, 1) for every sample: float64, (B,), on the CPU."""
    return torch.tensor([_philox(seed, stream, step, int(i)).random() for i in index.tolist()], dtype=torch.float64)
