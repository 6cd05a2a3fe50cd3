"""Files beside the images of a folder: captions, and what is not read."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datamodules.sources.decoding import IMAGE_SUFFIXES
from datamodules.sources.files import is_about_the_data

CAPTION_SUFFIXES = (".txt", ".caption")


def is_image(name: str) -> bool:
    """Whether the suffix of a file is that of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def caption_files(root: Path, names: Sequence[str], files: Sequence[str]) -> list[Path | None]:
    """The text file of each image's name, where there is one.

    Args:
        root: The folder.
        names: Of the images.
        files: Names of all files.

    Raises:
        ValueError: An image has two.
    """
    texts: dict[str, Path] = {}
    images = {_stem(name) for name in names}
    for name in files:
        stem = _stem(name)
        if stem in images and name.lower().endswith(CAPTION_SUFFIXES):
            if stem in texts:
                raise ValueError(f"{texts[stem]} and {name} are captions of one picture; keep one of them")
            texts[stem] = root / name
    return [texts.get(_stem(name)) for name in names]


def refuse_missing(found: Sequence[Path | None], names: Sequence[str], *, root: Path) -> None:
    """See that all images have a caption's file, or none has.

    Raises:
        ValueError: Some have.
    """
    missing = found.count(None)
    if 0 < missing < len(found):
        first = (root / names[found.index(None)]).with_suffix(CAPTION_SUFFIXES[0])
        raise ValueError(
            f"{missing} of {len(found)} pictures have no caption file, first {first}; add the missing "
            "ones (they may be empty) or remove all of them"
        )


def sort_out(files: Sequence[str], used: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that are no part of a record, and what is told of those that have an image's name and do not count."""
    names = {posixpath.normpath(name) for name in used}
    stems = {_stem(name) for name in names}
    left = [name for name in files if name not in names and not is_about_the_data(name)]
    beside = {name for name in left if _stem(name) in stems and not is_image(name)}
    shown = ", ".join(ascii(name) for name in sorted(beside)[:3])
    told = [f"{len(beside)} files beside pictures of their names are not read: {shown}"] if beside else []
    return [name for name in left if name not in beside], told


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]
