"""Folders that appear whole or not at all, and that are there at every moment while they are replaced."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparsight.common.disk.files import flush, is_running

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV)  # the kernel, or the file system, does not swap


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """A new folder to fill, which appears at ``destination`` in one step when the block ends, and not if it raises.

    What stood there stays until then. Leftovers of killed processes go first.
    """
    destination = Path(os.path.realpath(destination))  # a link stays, and what it leads to is replaced
    put_back(destination)
    partial = _sibling(destination, "partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        appear(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def appear(partial: Path, destination: Path) -> None:
    """Put the folder ``partial`` in the place of ``destination``, on the same file system; what stood there goes.

    Linux swaps the two in one step. Where it cannot, as on other systems and on NFS, there is a moment without
    ``destination``, after which ``put_back`` finds what stood there.
    """
    for folder, _, names in os.walk(partial, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))
    if not destination.exists():
        partial.rename(destination)
    elif exchange(partial, destination):
        shutil.rmtree(partial, ignore_errors=True)  # now the earlier one
    else:
        earlier = _sibling(destination, "earlier")
        destination.rename(earlier)
        try:
            partial.rename(destination)
        except OSError:
            earlier.rename(destination)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    flush(destination.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; returns whether that can be done here.

    Raises:
        OSError: It can, but not with these two.
    """
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # an older C library
        return False
    names = [ctypes.c_char_p(os.fsencode(path)) for path in (one, other)]
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def put_back(destination: Path) -> None:
    """Clear up what killed processes left beside a folder; if it is missing, what they had moved away returns."""
    for path, kind in _leftovers(destination):
        if kind == "earlier" and not destination.exists():
            with suppress(FileNotFoundError):  # another process was faster
                path.rename(destination)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _leftovers(destination: Path) -> list[tuple[Path, str]]:
    """Siblings of dead processes, the newest first; those of earlier versions carry eight digits of chance."""
    pattern = re.compile(
        rf"\.{re.escape(destination.name)}\.(?:(?P<process>\d+)|[0-9a-f]{{8}})\.(?P<kind>partial|earlier)"
    )
    try:
        names = [(path, pattern.fullmatch(path.name)) for path in destination.parent.iterdir()]
    except OSError:
        return []
    found = [
        (path, match["kind"])
        for path, match in names
        if match and path.is_dir() and not (match["process"] and is_running(int(match["process"])))
    ]
    return sorted(found, key=lambda entry: _modified(entry[0]), reverse=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")
