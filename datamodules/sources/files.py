"""Files of data: found by path, pattern or braces, and walked through without what systems leave behind."""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import has_magic
from itertools import pairwise
from pathlib import Path, PurePosixPath

MAX_FILES = 1_000_000  # of one pattern in braces
# what systems and tools leave behind, besides all names that begin with a dot
_LEFT_BEHIND = frozenset({"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "lost+found"})
_LEFT_BEHIND_TOO = frozenset({"$recycle.bin", "system volume information", "icon\r", "@tmp", "#recycle"})
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])", re.ASCII)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_ABOUT_THE_DATA = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog|sha\d+sums?|md5sums?)\b.*", re.I)


def is_left_behind(name: str) -> bool:
    """Whether a path inside a data set leads to what systems and tools leave behind, such as ``.ipynb_checkpoints``."""
    parts = PurePosixPath(name).parts
    return any((part[0] == "." and part != "..") or part.lower() in _LEFT_BEHIND | _LEFT_BEHIND_TOO for part in parts)


def is_about_the_data(name: str) -> bool:
    """Whether a file tells people about a data set, such as a README: nobody expects it to be read."""
    return _ABOUT_THE_DATA.fullmatch(PurePosixPath(name).name) is not None


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


def need_local(path: str, *, what: str) -> None:
    """Refuse a path that is not there and is no id on the hub, which is ``name`` or ``user/name``.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not _HUB_ID.fullmatch(path) and not os.path.exists(path):
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
    if match[4]:
        first, last, width, step = ord(match[4]), ord(match[5]), 0, 1
    else:
        first, last, step = int(match[1]), int(match[2]), abs(int(match[3] or 1)) or 1
        padded = any(re.match(r"-?0\d", end) for end in (match[1], match[2]))
        width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (chr(number) if match[4] else f"{number:0{width}d}" for number in numbers)


def file_stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of files: what a fingerprint of many files can afford to look at."""
    return [(path.name, stat.st_size, stat.st_mtime_ns) for path in paths if (stat := path.stat())]


def is_inside(path: str | Path, root: str | Path) -> bool:
    """Whether a path leads into a folder, once all links are followed; links in circles lead nowhere else.

    Raises:
        ValueError: The path holds a zero byte.
    """
    real = os.path.realpath(root)
    return os.path.commonpath([real, os.path.realpath(path)]) == real


@dataclass
class FolderFiles:
    """The files under a folder, as paths inside it in the order of their names.

    Links are followed as long as they stay inside: to files, and to folders that hold no link to a folder themselves.

    Args:
        root: The folder.
        refuse_outside: Whether a link that leads outside is an error; otherwise it is skipped.

    Attributes:
        names: Files that can be read.
        skipped: Links to folders that were not followed, broken links, and what is no plain file.
        folders: Folders, whatever is in them.

    Raises:
        ValueError: A link leads outside.
    """

    root: Path
    refuse_outside: bool = True
    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        real_root = os.path.realpath(self.root)
        folders = [("", False)]  # names, and whether a link led there
        while folders:
            inside, linked = folders.pop()
            for name, entry in self._entries(inside, real_root):
                link = entry.is_symlink()
                if not _is_folder(entry):
                    (self.names if _is_plain(entry) else self.skipped).append(name)
                elif link and (linked or is_inside(self.root / inside, entry.path)):
                    self.skipped.append(name)  # it leads back up, or may
                else:
                    folders.append((name, linked or link))
                    self.folders.append(name)
        self.names.sort()

    def _entries(self, inside: str, real_root: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(self.root / inside) as entries:
            for entry in entries:
                if is_left_behind(entry.name):
                    continue
                name = f"{inside}/{entry.name}".lstrip("/")
                if entry.is_symlink() and not is_inside(entry.path, real_root):
                    if not self.refuse_outside:
                        self.skipped.append(name)
                        continue
                    raise ValueError(
                        f"a link in {self.root / inside} leads to {name!r}, outside {self.root}; copy the file into "
                        "the folder"
                    )
                yield name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _is_plain(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
