"""Files that appear whole or not at all, also when the process is killed or the machine loses power."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

# beside its target: .NAME.PROCESS-THREAD.part.SUFFIX
PART = re.compile(r"\..+\.(?P<process>\d+)(-\d+)?\.part(\.\w+)?")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file of the same suffix, then move it to ``path``; folders are made.

    The temporary file stands beside its target, because only there a rename replaces the target in one step. It is on
    the disk before it is renamed, so that no crash leaves a name without its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_native_id()}.part{path.suffix}")
    try:
        write(part)
        flush(part)
        os.replace(part, path)
        flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; where a file system cannot, nothing is done."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise  # the disk refused content
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what ``write_whole`` left in ``folder`` when its process was killed; returns what was removed."""
    found = [(path, PART.fullmatch(path.name)) for path in folder.glob(".*.part*")]
    dead = [path for path, match in found if match and not is_running(int(match["process"]))]
    for path in dead:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return dead


def is_running(process: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
