"""Checkpoint files that are whole or not there, carry a hash of themselves, and run no code when they are read.

A file is what ``torch.save`` writes, with one more record in its archive: ``Header``, which can be read without
the rest. The hash covers all other records.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sparsight.common import formats
from sparsight.common.disk.files import write_whole
from sparsight.common.errors import CheckpointError, chain

FORMAT = 1
"""Number of the present format; checkpoints from before there were numbers have none."""
RECORD = "sparsight.json"  # name of the header in the archive
ALGORITHM = "sha256"
TAKE_ANOTHER = "take an earlier one, or let `fit --resume true` find the newest whole one"
HARMLESS: list[Any] = [GradClipAlgorithmType]  # two words; checkpoints of format 1 may hold it
PLAIN = "keep plain data and tensors alone in the states and options of callbacks, modules and data"
_BLOCK = 1 << 20
_LARGEST_HEADER = 1 << 26
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:[/:]|registry(:|$)")  # a Path has one slash left of two


@dataclass
class Header:
    """What a checkpoint tells about itself before it is loaded.

    Attributes:
        format: Number of its format; 0 for those from before there were numbers.
        hash: Hash of all other records, with the name of the algorithm before a colon; empty for format 0.
        saved_at: Seconds since 1970.
        step: Optimiser steps taken.
        resumable: Whether training can go on from it, which needs more than weights.
        hyper_parameters: Options of the module, as far as they are plain data.
        best: Path of the best checkpoint so far, as its callback knew it.
    """

    format: int = 0
    hash: str = ""
    saved_at: float = 0.0
    step: int | None = None
    resumable: bool = True
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    best: str | None = None


def local(path: str | os.PathLike[str]) -> Path:
    """A checkpoint's path, if it is one on this machine.

    Raises:
        CheckpointError: It is an address, or empty.
    """
    if not str(path).strip():
        raise CheckpointError("the checkpoint's name is empty: give a file, last or best, or leave it out")
    if _ADDRESS.match(str(path)) and not Path(path).exists():
        scheme = str(path).partition(":")[0]
        raise CheckpointError(
            f"checkpoints are not fetched from addresses ({scheme}:...): download it and name the file"
        )
    return Path(path)


def header_of(checkpoint: Mapping[str, Any]) -> Header:
    """Header for a checkpoint in memory, without its hash."""
    callbacks = checkpoint.get("callbacks", {}).values()
    best = [
        state["best_model_path"] for state in callbacks if isinstance(state, Mapping) and "best_model_path" in state
    ]
    options = checkpoint.get("hyper_parameters", {})
    return Header(
        format=FORMAT,
        saved_at=time.time(),
        step=checkpoint.get("global_step"),
        resumable="lr_schedulers" in checkpoint,
        hyper_parameters=json.loads(json.dumps(dict(options), default=str)),
        best=next((path for path in best if path), None),
    )


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, read it back, and only then let it take the place of an earlier one.

    Raises:
        CheckpointError: The disk does not take it, or it holds objects that would not be read again; what was at
            ``path`` is as it was.
    """
    header = header_of(checkpoint)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # torch's own way of opening hides why a disk refuses
            try:
                torch.save(checkpoint | {formats.KEY: FORMAT}, file)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise CheckpointError(f"checkpoint {path} cannot be written: {_reason(error)}: {PLAIN}") from error
        with zipfile.ZipFile(part) as archive:
            _refuse_unreadable(part, path)
            header.hash = _hash(archive)  # reading compares every record with the sum of what was in memory
            root = archive.namelist()[0].partition("/")[0]
        with zipfile.ZipFile(part, "a") as archive:
            archive.writestr(f"{root}/{RECORD}", json.dumps(asdict(header)))

    try:
        write_whole(path, write)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"checkpoint {path} could not be written: {_reason(error)}; what was there before is as it was. Free space "
            "or change the place, then go on with `fit --resume true`"
        ) from error


def _refuse_unreadable(part: Path, path: Path) -> None:
    """Refuse now what ``read_checkpoint`` would not take later."""
    with safe_globals(HARMLESS):
        kinds = get_unsafe_globals_in_checkpoint(part)
    if kinds:
        raise CheckpointError(f"checkpoint {path} could not be read again, it holds {', '.join(kinds)}: {PLAIN}")


def read_header(path: Path) -> Header:
    """What a checkpoint file tells about itself.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is damaged, no checkpoint, or of a later version.
    """
    with _archive(path) as archive:
        return _header(archive, path)


def read_checkpoint(path: Path, map_location: Any = "cpu", *, verified: bool = False) -> dict[str, Any]:
    """Load a checkpoint file after comparing it with its hash; only tensors and plain data are taken.

    Args:
        path: The file.
        map_location: Where tensors go, as for ``torch.load``.
        verified: Whether the file was compared with its hash a moment ago.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is damaged, no checkpoint, of a later version, or holds other objects.
    """
    if not verified:
        verify(path)
    try:
        with safe_globals(HARMLESS):
            found = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not loaded: it holds other things than tensors and plain data, which could run code"
        ) from error
    except Exception as error:  # whatever a damaged file leads to
        raise CheckpointError(f"{path} is damaged ({_reason(error)}): {TAKE_ANOTHER}") from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(f"{path} is no checkpoint of a run: it has no state_dict, perhaps it holds weights alone")
    check_format(found, path)
    return found


def verify(path: Path) -> Header:
    """Compare a file with its hash.

    Raises:
        CheckpointError: As for ``read_header``, and where the content is not what was written.
    """
    with _archive(path) as archive:
        header = _header(archive, path)
        try:
            found = _hash(archive)
        except Exception as error:  # whatever a damaged file leads to
            raise CheckpointError(f"{path} is damaged ({_reason(error)}): {TAKE_ANOTHER}") from error
        if header.format and header.hash != found:
            raise CheckpointError(f"{path} is damaged: its content is not what was written. {TAKE_ANOTHER}")
        return header


def check_format(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse checkpoints of later versions; those from before there were numbers have none.

    Raises:
        CheckpointError: The number is above ``FORMAT``, or no number.
    """
    try:
        if formats.KEY in content:
            formats.check_format(content, FORMAT, str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no checkpoint at {path}") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path} is a folder: name a checkpoint file") from error
    except Exception as error:  # whatever a damaged file leads to
        raise CheckpointError(_what_it_is(path, error)) from error


def _what_it_is(path: Path, error: Exception) -> str:
    """One line about a file that is no archive."""
    if isinstance(error, OSError):
        return f"{path} cannot be read: {_reason(error)}"
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return f"{path} is empty, as after a full disk or a power cut: {TAKE_ANOTHER}"
    if start.startswith(b"PK"):
        return f"{path} is cut off or damaged, its end is missing: {TAKE_ANOTHER}"
    if start.endswith(b"{") and len(start) == 9:
        return f"{path} holds weights in safetensors' format, not a checkpoint: name a .ckpt file"
    return f"{path} is no checkpoint: name a .ckpt file that a run of Sparsight wrote"


def _header(archive: zipfile.ZipFile, path: Path) -> Header:
    names = archive.namelist()
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is no checkpoint: name a .ckpt file that a run of Sparsight wrote")
    record = next((name for name in names if name.endswith(f"/{RECORD}")), None)
    if record is None:
        return Header(saved_at=path.stat().st_mtime)
    try:
        if archive.getinfo(record).file_size > _LARGEST_HEADER:
            raise ValueError("it is too large")
        content = json.loads(archive.read(record))
        check_format(content, path)
        return Header(**{key: content[key] for key in content.keys() & Header.__dataclass_fields__.keys()})
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise CheckpointError(f"{path} is damaged in its header ({_reason(error)}): {TAKE_ANOTHER}") from error


def _hash(archive: zipfile.ZipFile) -> str:
    """Hash over names, entries and bytes of all records but the header, in the order of their names."""
    digest = hashlib.new(ALGORITHM)
    for name in sorted(archive.namelist()):
        if name.endswith(f"/{RECORD}"):
            continue
        about = archive.getinfo(name)
        entry = about.file_size, about.compress_type, about.flag_bits, about.external_attr, about.header_offset
        digest.update(f"{name.partition('/')[2]} {entry}\n".encode())  # a bit among these can make torch read nothing
        with archive.open(name) as record:
            while block := record.read(_BLOCK):
                digest.update(block)
    return f"{ALGORITHM}:{digest.hexdigest()}"


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, as the operating system says it where it does."""
    for each in chain(error):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
