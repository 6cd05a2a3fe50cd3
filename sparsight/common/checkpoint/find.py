"""Where the checkpoints of a run are, and which of them is the newest whole one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sparsight.common.checkpoint.file import Header, local, read_checkpoint, read_header, verify
from sparsight.common.checkpoint.folder import is_in_parts, read_marker, verify_folder
from sparsight.common.checkpoint.io import WholeCheckpointIO
from sparsight.common.errors import CheckpointError

SUFFIX = ModelCheckpoint.FILE_EXTENSION
LAST = ModelCheckpoint.CHECKPOINT_NAME_LAST


@runtime_checkable
class InFolder(Protocol):
    """A callback that keeps checkpoints in a folder."""

    dirpath: str | Path | None


def folders_of(trainer: Trainer) -> list[Path]:
    """Folders in which runs with this root, these loggers and these callbacks keep checkpoints; not all exist."""
    root = Path(trainer.default_root_dir)
    callbacks: list[Any] = trainer.checkpoint_callbacks
    found = [Path(callback.dirpath) for callback in callbacks if isinstance(callback, InFolder) and callback.dirpath]
    found += [root, root / "checkpoints", *sorted(root.glob("lightning_logs/*/checkpoints"))]
    for logger in trainer.loggers:
        runs = Path(logger.save_dir or root, str(logger.name))
        found += sorted(runs.glob("*/checkpoints"))
        found.append(runs / "version_0" / "checkpoints")  # to be named where there is no run yet
    return list(dict.fromkeys(found))


def header(path: Path) -> Header:
    """What a checkpoint, a file or a folder of parts, tells about itself.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is damaged, unfinished, no checkpoint, or of a later version.
    """
    return read_marker(path) if is_in_parts(path) else read_header(path)


def check_whole(path: Path) -> Header:
    """The header of a checkpoint, after its content was compared with its hash."""
    return verify_folder(path) if is_in_parts(path) else verify(path)


def options_in(path: Path) -> dict[str, Any]:
    """Options of the module that a checkpoint was saved from, in whichever format."""
    about = header(path)
    return (
        about.hyper_parameters
        if about.format or is_in_parts(path)
        else read_checkpoint(path).get("hyper_parameters", {})
    )


def newest_last(trainer: Trainer) -> Path:
    """The newest ``last.ckpt`` of the runs in a trainer's folders.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folders = folders_of(trainer)
    # last.ckpt, and last-v1.ckpt where that was there already
    links = [path for path in _checkpoints(folders) if path.name.startswith(LAST)]
    if links:
        return max(links, key=lambda path: path.stat().st_mtime_ns)
    dangling = [path for folder in folders for path in folder.glob(f"{LAST}*{SUFFIX}") if path.is_symlink()]
    gone = f"; {dangling[0]} leads to a file that is gone" if dangling else ""
    raise CheckpointError(
        f"there is no {LAST}{SUFFIX} in {_listed(folders)}{gone}: name a checkpoint, let ModelCheckpoint write one "
        "(save_last: true), or leave ckpt_path out to begin anew"
    )


def newest_whole(trainer: Trainer, resume: bool | str) -> Path | None:
    """The newest checkpoint that training can go on from, after a look at whether it is whole.

    Args:
        trainer: Tells the folders that are searched.
        resume: Another folder to search, with what is in it, or true.

    Returns:
        The checkpoint; none if no run has written one yet.

    Raises:
        CheckpointError: The folder is not there, or all checkpoints in it are damaged.
    """
    folders = folders_of(trainer) if isinstance(resume, bool) else _all_below(local(resume))
    known, faults = [], []
    for path in _checkpoints(folders):
        try:
            known.append((header(path), path))
        except (CheckpointError, FileNotFoundError) as error:
            faults.append((path, str(error)))
    known.sort(key=lambda one: (one[0].saved_at, one[0].step or 0), reverse=True)
    newest = known[0][0].saved_at if known else 0.0
    for path, fault in faults:
        if path.exists() and path.stat().st_mtime >= newest:
            rank_zero_warn(f"passed over: {fault}")
    for about, path in known:
        if not about.resumable:
            continue
        try:
            check_whole(path)
            if isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO) and path.is_file():
                trainer.strategy.checkpoint_io.was_whole(path)
        except CheckpointError as error:
            rank_zero_warn(f"passed over: {error}")
            faults.append((path, str(error)))
            continue
        rank_zero_info(f"resuming from {path}" + ("" if about.step is None else f", step {about.step}"))
        return path
    if faults:
        raise CheckpointError(f"no checkpoint in {_listed(folders)} is whole: {faults[0][1]}")
    rank_zero_info(f"nothing to resume in {_listed(folders)}: starting at step 0")
    return None


def _checkpoints(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if not path.name.startswith(".") and (path.is_file() or is_in_parts(path)):
                yield path


def _all_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"resume names {folder}, which is no folder: name one, or give true")
    below = [path.parent for path in folder.rglob(f"*{SUFFIX}") if not is_in_parts(path.parent)]
    return list(dict.fromkeys([folder, *sorted(below)]))


def _listed(folders: list[Path]) -> str:
    return ", ".join(map(str, folders))
