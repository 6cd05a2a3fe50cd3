"""Checkpoints in parts, one of every process: folders that count as checkpoints once a marker stands in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from sparsight.common.checkpoint.file import TAKE_ANOTHER, Header, check_format, header_of
from sparsight.common.disk.files import flush, write_text
from sparsight.common.errors import CheckpointError
from sparsight.common.hashes import files_hash
from sparsight.common.text import read_json

MARKER = "complete.json"
PARTS = ".metadata"  # what torch.distributed.checkpoint writes last
REST = "meta.pt"  # what Lightning keeps beside the parts


def writes_parts(trainer: Trainer) -> bool:
    """Whether every process of this trainer writes its own part of a checkpoint."""
    strategy = trainer.strategy
    return isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint


def is_in_parts(path: Path) -> bool:
    """Whether a folder is a checkpoint in parts, finished or not."""
    return path.is_dir() and any((path / name).exists() for name in (MARKER, PARTS, REST))


def write_in_parts(trainer: Trainer, target: Path, write: Callable[[Path], None]) -> None:
    """Let all processes write beside ``target``, and put the folder in its place when it is whole.

    Args:
        trainer: Of all processes.
        target: The folder to be.
        write: Called on every process with the folder to fill; returns when all have.

    Raises:
        CheckpointError: The disk does not take it, on all processes alike.
    """
    strategy = trainer.strategy
    target = Path(strategy.broadcast(str(target)))
    part = Path(strategy.broadcast(str(target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}"))))
    if trainer.is_global_zero:
        shutil.rmtree(part, ignore_errors=True)
    strategy.barrier("write_in_parts")
    write(part)
    failed = None
    if trainer.is_global_zero:
        try:
            seal(part)
            _put_in_place(part, target)
        except OSError as error:
            failed = f"checkpoint {target} could not be written: {error.strerror}; what was there before is as it was"
    failed = strategy.broadcast(failed)
    if failed:
        raise CheckpointError(failed)


def seal(folder: Path) -> None:
    """Write the marker: what the checkpoint tells about itself, and the hash of every file."""
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    files = {path.name: _hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARKER}
    for name in files:
        flush(folder / name)
    write_text(folder / MARKER, json.dumps(asdict(header_of(rest)) | {"files": files}))


def read_marker(folder: Path) -> Header:
    """What a checkpoint in parts tells about itself.

    Raises:
        CheckpointError: It was never finished, or is of a later version.
    """
    return _marker(folder)[0]


def verify_folder(folder: Path) -> Header:
    """Compare all files with their hashes.

    Raises:
        CheckpointError: As ``read_marker``, and where a file is missing or not what was written.
    """
    header, files = _marker(folder)
    for name, expected in files.items():
        if not (folder / name).is_file() or _hash(folder / name) != expected:
            raise CheckpointError(f"{folder} is damaged: {name} is not what was written. {TAKE_ANOTHER}")
    return header


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint in parts; one that is half removed has no marker, and a name that none has."""
    gone = folder.with_name(f".{folder.stem}.{os.getpid()}.part{folder.suffix}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    (gone / MARKER).unlink(missing_ok=True)
    shutil.rmtree(gone)


def _marker(folder: Path) -> tuple[Header, dict[str, str]]:
    try:
        content = read_json(folder / MARKER)
        check_format(content, folder)
        files = content["files"]
        header = Header(**{key: content[key] for key in content.keys() & Header.__dataclass_fields__.keys()})
    except FileNotFoundError:
        return _of_earlier_version(folder), {}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is damaged in {MARKER}: {TAKE_ANOTHER}") from error
    return header, files


def _of_earlier_version(folder: Path) -> Header:
    """What a folder of before there were markers tells: the rest was written after all parts and their list."""
    try:
        if not (folder / PARTS).exists():
            raise FileNotFoundError(PARTS)
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
        return replace(header_of(rest), format=0, saved_at=(folder / REST).stat().st_mtime)
    except Exception as error:  # whatever an unfinished or damaged file leads to
        raise CheckpointError(f"{folder} was never finished: it has no {MARKER}. {TAKE_ANOTHER}") from error


def _put_in_place(part: Path, target: Path) -> None:
    """Names of folders cannot be swapped everywhere: the earlier one stays whole under a name that is found, too."""
    earlier = target.with_name(f"{target.stem}-earlier{target.suffix}")
    if target.exists() or target.is_symlink():
        if earlier.is_dir():
            remove_folder(earlier)
        os.rename(target, earlier)
    os.rename(part, target)
    flush(target.parent)
    if earlier.is_dir():
        remove_folder(earlier)
    else:
        earlier.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    return f"sha256:{files_hash([path])}"
