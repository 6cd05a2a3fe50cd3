"""What is drawn for a training batch, by a thread while the batch before it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.diffusion.model.randomness import Stream, sample_normal, sample_uniform


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch, on the CPU.

    Args:
        dropout: One uniform number a sample, which decides whether it loses its condition (B,).
        timestep: One uniform number a sample, which decides its noise level (B,).
        noise: Standard normal numbers (B, ...).
    """

    dropout: Tensor
    timestep: Tensor
    noise: Tensor


@dataclass(frozen=True)
class DrawKey:
    """What draws depend on; equal ones give equal draws, whoever draws and when."""

    seed: int
    step: int
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def draws(self) -> Draws:
        """The random numbers."""
        index = torch.tensor(self.index)
        given: dict[str, Any] = {"seed": self.seed, "step": self.step, "index": index}
        return Draws(
            dropout=sample_uniform(**given, stream=Stream.CONDITION_DROPOUT),
            timestep=sample_uniform(**given, stream=Stream.TIMESTEP),
            noise=sample_normal(self.shape, **given, stream=Stream.NOISE),
        )


class AheadOfTime:
    """Draws of one batch to come; numpy lets go of the interpreter while it fills them.

    Args:
        pinned: Put them into memory from which a GPU copies while the processor works on.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self.pinned = pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draws")
        self._coming: tuple[DrawKey, Future[Draws]] | None = None

    def begin(self, key: DrawKey) -> None:
        """Draw in the thread."""
        self._coming = key, self._thread.submit(self._draw, key)

    def _draw(self, key: DrawKey) -> Draws:
        draws = key.draws()
        return Draws(draws.dropout, draws.timestep, draws.noise.pin_memory()) if self.pinned else draws

    def take(self, key: DrawKey) -> Draws:
        """The draws; those of another batch than the one that is expected, as of a validation, are made now."""
        if self._coming is None or self._coming[0] != key:
            return key.draws()
        draws, self._coming = self._coming[1].result(), None
        return draws

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


def key_of(seed: int, step: int, index: Tensor, shape: Sequence[int]) -> DrawKey:
    """What the draws of a batch depend on; its ids (B,) are on the CPU."""
    return DrawKey(seed, step, tuple(index.tolist()), tuple(shape))
