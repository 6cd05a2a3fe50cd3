"""How fast training goes and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

MEBIBYTE = 2**20


class Throughput(Callback):
    """Logs samples per second over all processes, and peak memory in MiB, at every logging step.

    Peak memory is what the allocator of the GPU reached, or the resident set of the process on a CPU.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count samples, and log when Lightning does."""
        self._samples += len(batch["index"]) * trainer.world_size
        if (trainer.global_step + 1) % getattr(trainer, "log_every_n_steps", 50):
            return
        speed = self._samples / (time.perf_counter() - self._begin)
        pl_module.log("samples/s", speed, prog_bar=True, logger=False)
        pl_module.log_dict({"train/samples_per_second": speed, "train/peak_memory_mib": peak_memory_mib()})
        self._restart()

    def _restart(self) -> None:
        self._begin, self._samples = time.perf_counter(), 0


def peak_memory_mib() -> float:
    """Peak memory of this process so far, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024  # bytes on macOS, KiB elsewhere
