"""Files that a run reads: by path, pattern or braces, and refused by the option that names them if they are missing."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterator
from glob import has_magic
from itertools import pairwise
from pathlib import Path, PurePosixPath

MAX_FILES = 1_000_000  # of one pattern in braces
# what systems and tools leave behind, besides all names that begin with a dot
_LEFT_BEHIND = frozenset({"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "lost+found"})
_LEFT_BEHIND_TOO = frozenset({"$recycle.bin", "system volume information", "icon\r", "@tmp", "#recycle"})
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.(-?\d+))?", re.ASCII)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def is_left_behind(name: str) -> bool:
    """Whether a path inside a data set leads to what systems and tools leave behind, such as ``.ipynb_checkpoints``."""
    parts = PurePosixPath(name).parts
    return any((part[0] == "." and part != "..") or part.lower() in _LEFT_BEHIND | _LEFT_BEHIND_TOO for part in parts)


def find_files(files: str | list[str], *, what: str) -> list[Path]:
    """Files by path, pattern (``data/*.tar``) or braces (``data/{00..12}.tar``), or a list of such.

    A name that is there as it is written is taken as it is; only others are patterns. Each pattern's files come in the
    order of their names, those of braces in the order of the braces.

    Raises:
        FileNotFoundError: A path or pattern has none.
        ValueError: Braces stand for more than a million names.
    """
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        path = existing(Path(pattern))
        literal, rest = _split(path if os.path.lexists(path) else existing(Path(os.path.expanduser(pattern))))
        for name in expand_braces(rest) if rest else [""]:
            matches = _match(literal, name)
            if not matches:
                raise FileNotFoundError(f"{what}: there is no file {literal / name}")
            found += matches
    if not found:
        raise FileNotFoundError(f"{what}: no file is given")
    return found


def need_file(path: str | Path, *, what: str, holds: str) -> None:
    """Refuse a path that is none of a file.

    Args:
        path: The path.
        what: The option that it was given by.
        holds: What should be in it.

    Raises:
        FileNotFoundError: There is nothing, or something else.
    """
    if not os.path.isfile(path):
        told = "is a folder" if os.path.isdir(path) else "does not exist"
        raise FileNotFoundError(f"{what}: {path} {told}; give a file of {holds}")


def need_folder(path: str | Path, *, what: str, holds: str) -> None:
    """Refuse a path that is no folder; the message names the option and what should be in it."""
    if not os.path.isdir(path):
        told = "is a file" if os.path.isfile(path) else "does not exist"
        raise FileNotFoundError(f"{what}: {path} {told}; give a folder of {holds}")


def may_be_hub_id(name: str) -> bool:
    """Whether a name may be one on the hub, ``name`` or ``user/name``, rather than a path."""
    return _HUB_ID.fullmatch(name) is not None


def need_local(path: str, *, what: str) -> None:
    """Refuse a path that is not there and is no id on the hub, which is ``name`` or ``user/name``.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not may_be_hub_id(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{what}: {path} does not exist; give a folder, or an id of the hub")


def existing(path: Path) -> Path:
    """The path itself, or the way that it is written on disk: composed or decomposed Unicode."""
    if (path.name.isascii() and str(path).isascii()) or os.path.lexists(path):
        return path
    others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in others if os.path.lexists(other)), path)


def _match(folder: Path, pattern: str) -> list[Path]:
    literal, rest = _split(existing(folder / pattern))
    if not rest:
        return [literal] if os.path.isfile(literal) else []
    # unlike glob.glob, Path.glob does not follow links through **, which may lead in circles
    matches = literal.glob(rest) if has_magic(rest) else ()
    try:
        plain = [match for match in matches if os.path.isfile(match)]
    except OSError as error:  # a piece of the pattern is longer than any name
        if error.errno != errno.ENAMETOOLONG:
            raise
        return []
    return sorted(match for match in plain if not is_left_behind(match.relative_to(literal).as_posix()))


def _split(path: Path) -> tuple[Path, str]:
    """The beginning of a path that is there as it is written, which no sign makes a pattern, and the rest."""
    literal, parts = Path(), list(path.parts)
    while parts and os.path.exists(literal / parts[0]):
        literal /= parts.pop(0)
    return literal, str(Path(*parts)) if parts else ""


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern in braces stands for, as in bash: ``{a,b}``, ``{000..012}``, ``{0..8..2}``, nested.

    Raises:
        ValueError: They are more than a million.
    """
    for number, name in enumerate(_expand(pattern)):
        if number == MAX_FILES:
            raise ValueError(f"{pattern[:80]} stands for more than {MAX_FILES} files; give fewer, or a pattern with *")
        yield name


def _expand(pattern: str) -> Iterator[str]:
    for start in (place for place, sign in enumerate(pattern) if sign == "{"):
        end, commas = _closing(pattern, start)
        if end is None:
            continue
        borders = [start, *commas, end]
        parts = [pattern[left + 1 : right] for left, right in pairwise(borders)]
        choices = (name for part in parts for name in _expand(part)) if commas else _range(parts[0])
        if choices is not None:
            for choice in choices:
                yield from (pattern[:start] + choice + tail for tail in _expand(pattern[end + 1 :]))
            return
    yield pattern


def _closing(pattern: str, start: int) -> tuple[int | None, list[int]]:
    """Where a brace closes, and the commas of its own level."""
    depth = 0
    commas: list[int] = []
    for place in range(start, len(pattern)):
        depth += (pattern[place] == "{") - (pattern[place] == "}")
        if depth == 0:
            return place, commas
        if pattern[place] == "," and depth == 1:
            commas.append(place)
    return None, []


def _range(text: str) -> Iterator[str] | None:
    match = _RANGE.fullmatch(text)
    if match is None or len(text) > 60:
        return None
    step = abs(int(match[5] or 1)) or 1
    if match[3]:
        first, last, width = ord(match[3]), ord(match[4]), 0
    else:
        first, last = int(match[1]), int(match[2])
        padded = any(re.match(r"-?0\d", end) for end in (match[1], match[2]))
        width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (chr(number) if match[3] else f"{number:0{width}d}" for number in numbers)
