"""Checkpoints of earlier versions, whose tensors have other names, where a strategy reads them by name on its own.

Lightning shows a module what it loads before the tensors are taken, so that the module can follow names itself; only
ModelParallelStrategy takes them first, from parts or from a whole file.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import FileSystemReader

from sparsight.common.checkpoint.folder import PARTS, is_in_parts


@runtime_checkable
class Renamed(Protocol):
    """A module whose tensors had other names in checkpoints of earlier versions."""

    def former_names(self) -> Mapping[str, str]:
        """Today's names of trained tensors by the former ones."""
        ...

    def follow_names(self, checkpoint: dict[str, Any]) -> None:
        """Give what a checkpoint holds today's names and order; changed in place."""
        ...


@contextmanager
def under_todays_names(path: Path, trainer: Trainer) -> Iterator[Path]:
    """A checkpoint as a strategy can read it: itself, or for the time inside a twin of it with today's names.

    Args:
        path: The checkpoint, on all processes alike.
        trainer: With its module; all of its processes must call this.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    if not (isinstance(strategy, ModelParallelStrategy) and isinstance(module, Renamed)):
        yield path
        return
    twin = Path(trainer.default_root_dir, f".{path.stem}.{os.getpid()}.renamed")
    made = False
    if trainer.is_global_zero:
        twin.parent.mkdir(parents=True, exist_ok=True)
        made = rename_parts(path, twin, module.former_names()) if is_in_parts(path) else _rewrite(path, twin, module)
    read = strategy.broadcast(twin if made else path)
    try:
        yield Path(read)
    finally:
        strategy.barrier("under_todays_names")
        if made and is_in_parts(twin):
            shutil.rmtree(twin)
        elif made:
            twin.unlink()


def rename_parts(folder: Path, twin: Path, names: Mapping[str, str]) -> bool:
    """Make a twin of a checkpoint in parts that has other names, if there is something to rename.

    The parts hold numbers alone, and are linked to; names stand in their list.

    Args:
        folder: The checkpoint.
        twin: A folder that is not there.
        names: New names by the old ones, as they follow a dot or begin a key, and end it or precede one.

    Returns:
        Whether there was something; otherwise there is no twin.
    """
    if not names:
        return False
    listed = FileSystemReader(folder).read_metadata()
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    pattern = re.compile(rf"(?<![^.])({longest_first})(?![^.])")

    def renamed(name: str) -> str:
        return pattern.sub(lambda found: names[found[1]], name)

    if all(renamed(name) == name for name in listed.state_dict_metadata):
        return False
    listed.state_dict_metadata = {renamed(name): value for name, value in listed.state_dict_metadata.items()}
    listed.storage_data = {replace(key, fqn=renamed(key.fqn)): value for key, value in listed.storage_data.items()}
    listed.planner_data = {
        renamed(name): tuple(renamed(part) if isinstance(part, str) else part for part in path)
        for name, path in (listed.planner_data or {}).items()
    }
    twin.mkdir()
    for file in folder.iterdir():
        if file.name != PARTS:
            (twin / file.name).symlink_to(file.absolute())
    with (twin / PARTS).open("wb") as written:
        pickle.dump(listed, written)
    return True


def _rewrite(path: Path, twin: Path, module: Renamed) -> bool:
    """Write a twin of a whole file with today's names, if it has former ones."""
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not module.former_names().keys() & checkpoint["state_dict"].keys():
        return False
    module.follow_names(checkpoint)
    torch.save(checkpoint, twin)
    return True
