"""Folders of data, walked through without what systems leave behind, and what is known of their files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sparsight.common.disk.inputs import is_left_behind

_ABOUT_THE_DATA = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog|sha\d+sums?|md5sums?)\b.*", re.I)


def is_about_the_data(name: str) -> bool:
    """Whether a file tells people about a data set, such as a README: nobody expects it to be read."""
    return _ABOUT_THE_DATA.fullmatch(PurePosixPath(name).name) is not None


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
