"""A file of finished work, one JSON line each, so that an interrupted run goes on where it stopped.

Each line ends with a checksum of what stands before it. Lines that a power cut or a bad disk has damaged are left out,
counted, and their work is done again.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError

FORMAT = 2
"""Number of the format: 2 has a checksum in each line, 1 had none and is read, too."""

_FORMAT, _SUM, _DIGITS = "journal_format", ', "crc": "', 8
_log = logging.getLogger(__name__)


class Journal:
    """Results by key, on disk as soon as they are there.

    Any number of processes may read a journal; one at a time may write it.

    Args:
        path: JSON lines; made if missing. The first line is ``about``.
        about: Plain data on what all results depend on; its ``date`` may differ between runs.

    Attributes:
        about: As it was when the file was begun.
        results: By key.

    Raises:
        ValueError: The file holds results that depend on something else, its first line is damaged, or another process
            is writing it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        found = _read(path) if path.exists() else _Lines()
        begun = found.about is not None
        self.about: dict[str, Any] = found.about if found.about is not None else json.loads(json.dumps(about))
        _refuse_other(path, self.about, about)
        self.results = found.results
        self._lock = _hold(path)
        if not begun or found.rewrite:
            lines = [_line({_FORMAT: FORMAT, "about": self.about})]
            lines += [_line({"key": key, "result": result}) for key, result in self.results.items()]
            write_text(path, "".join(lines))
        found.warn(path)

    def add(self, key: str, result: Any) -> None:
        """Keep a result; it has left this process when this returns."""
        self.results[key] = result
        with self.path.open("ab") as file:
            file.write(_line({"key": key, "result": result}).encode())
            file.flush()


def check_about(path: Path, about: Mapping[str, Any]) -> None:
    """See that a journal's results depend on nothing else than ours would.

    Raises:
        ValueError: They depend on something else, or the line that tells is damaged.
    """
    begun = _read(path, whole=False).about
    if begun is not None:
        _refuse_other(path, begun, about)


def read_results(path: Path) -> dict[str, Any]:
    """Results of a journal that another process may be writing.

    Raises:
        ValueError: Its first line is damaged.
    """
    found = _read(path)
    found.warn(path)
    return found.results


@dataclass
class _Lines:
    about: dict[str, Any] | None = None
    results: dict[str, Any] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)  # line numbers, from 1
    rewrite: bool = False  # something is to be left out, or brought to today's format

    def warn(self, path: Path) -> None:
        if self.damaged:
            shown = ", ".join(map(str, self.damaged[:5])) + (" ..." if len(self.damaged) > 5 else "")
            _log.warning(
                "%s: %d damaged lines are left out and their work is done again (line %s)",
                path,
                len(self.damaged),
                shown,
            )


def _read(path: Path, *, whole: bool = True) -> _Lines:
    """The lines of a journal; what follows the last line end was being written when the run was killed."""
    found = _Lines()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") and number > 1:
                found.rewrite = True
                break
            if number == 1:
                found.about, checked = _about(path, line)
                found.rewrite = not checked
                if not whole:
                    break
                continue
            entry = _entry(line, checked=checked)
            if entry is None:
                found.damaged.append(number)
                found.rewrite = True
            else:
                found.results[entry["key"]] = entry["result"]
    return found


def _about(path: Path, line: bytes) -> tuple[dict[str, Any], bool]:
    """The first line's content, and whether the file's lines have checksums."""
    content = _parsed(line)
    if content is not None and _FORMAT in content:
        if content[_FORMAT] != FORMAT:
            raise ConfigurationError(
                f"{path} has format {content[_FORMAT]}, and this version reads up to {FORMAT}: use a newer one"
            )
        if _is_intact(line) and isinstance(content.get("about"), dict):
            return content["about"], True
        content = None
    if content is None or "crc" in content:
        raise ConfigurationError(
            f"{path}: its first line, which tells what the results depend on, is damaged: move the file away to work "
            "anew, or put a copy back"
        )
    return content, False


def _entry(line: bytes, *, checked: bool) -> dict[str, Any] | None:
    if checked and not _is_intact(line):
        return None
    content = _parsed(line)
    if content is None or not isinstance(content.get("key"), str) or "result" not in content:
        return None
    return content


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _line(content: Mapping[str, Any]) -> str:
    body = json.dumps(content)[:-1]
    return f'{body}{_SUM}{crc32(body.encode()):0{_DIGITS}x}"}}\n'


def _is_intact(line: bytes) -> bool:
    end = len(line) - _DIGITS - len(b'"}\n')
    body, told = line[: end - len(_SUM)], line[end : end + _DIGITS]
    return line[end - len(_SUM) : end] == _SUM.encode() and told == f"{crc32(body):0{_DIGITS}x}".encode()


def _hold(path: Path) -> IO[bytes]:
    """Keep other processes from writing the same journal for as long as this one lives.

    Raises:
        ConfigurationError: Another one is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock").open("ab")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: opening it twice in one is allowed
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise ConfigurationError(
            f"{path} is being written by another process: wait for it, or choose another folder"
        ) from error
    except OSError:
        pass  # a file system without locks
    return lock


def _refuse_other(path: Path, begun: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(about))
    for name in sorted({*now, *begun} - {"date"}):
        if now.get(name) != begun.get(name):
            where, before, after = _first_difference(name, begun.get(name), now.get(name))
            raise ValueError(
                f"{path} was begun with {where} {before!r}, now it is {after!r}: "
                "results would not compare; choose another folder or delete the file"
            )


def _first_difference(where: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """Path of the first value that differs, such as ``model.hash``, and both values."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for name in before:
            if before[name] != after[name]:
                return _first_difference(f"{where}.{name}", before[name], after[name])
    return where, before, after
