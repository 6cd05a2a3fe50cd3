"""What a run will take as a whole, told once its first steps were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

GIB, MIB = 2**30, 2**20


@runtime_checkable
class Estimated(Protocol):
    """A module that told at its start what it would need of its device."""

    estimated_bytes: int | None


@runtime_checkable
class Exporting(Protocol):
    """A module that knows how large its export will be."""

    def export_bytes(self) -> int:
        """Bytes of weights in an export."""
        ...


def disk_bytes(trainer: Trainer, module: Any, *, averaged: Mapping[str, Tensor], exported: bool) -> dict[str, int]:
    """What a run leaves on the disk, by name.

    Args:
        trainer: The run's, after its first steps: optimisers have their states.
        module: What is trained.
        averaged: The moving average that checkpoints hold besides.
        exported: Whether an export is written at the end.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    states = [t for optimizer in trainer.optimizers for state in optimizer.state.values() for t in state.values()]
    checkpoint = sum(_bytes(each) for each in (*trained, *states, *averaged.values()) if isinstance(each, Tensor))
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    count = sum(_kept(saver, trainer.estimated_stepping_batches) for saver in savers)
    found = {f"{count} checkpoints": count * checkpoint}
    if exported and isinstance(module, Exporting):
        found["export"] = module.export_bytes()
    return {name: size for name, size in found.items() if size}


def whole_run(
    seconds: float | None, *, steps: float, disk: Mapping[str, int], folder: Path, peak_mib: float, of_process: bool
) -> str:
    """A sentence on time, disk and memory.

    Args:
        seconds: That the whole run takes; none if nothing ends it.
        steps: Of the whole run.
        disk: By what is written.
        folder: Where to: what is free there is told if it is too little.
        peak_mib: Memory that was measured.
        of_process: Whether that is the process's, libraries included, and not the allocator's of a GPU.
    """
    told = [] if seconds is None else [f"{steps:.0f} steps take about {timedelta(seconds=math.ceil(seconds))}"]
    total, free = sum(disk.values()), disk_usage(_there(folder)).free
    if disk:
        parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in disk.items())
        short = f"; the disk has {free / 1e6:,.0f} MB left, which is too little" if free < total else ""
        told.append(f"about {total / 1e6:,.0f} MB of disk ({parts}{short})")
    told.append(f"peak memory so far {peak_mib:,.0f} MiB{' of the whole process' if of_process else ''}")
    return ", ".join(told)


def _kept(saver: ModelCheckpoint, steps: float) -> int:
    every = saver._every_n_train_steps
    known = math.isfinite(steps) and every > 0
    newest = saver.save_top_k if saver.save_top_k >= 0 else (math.ceil(steps / every) if known else 1)
    return newest + (saver.save_last is True)


def _there(folder: Path) -> Path:
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
