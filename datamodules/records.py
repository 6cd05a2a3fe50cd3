"""Record sources: one interface over idx files, image folders and Hugging Face data sets.

A source is cheap to build (it only keeps its options, so a config can be parsed without the data), is opened once by
the datamodule, and decodes each record only when it is asked for.
"""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

# Formats that Pillow decodes itself: EPS, for one, would start an external interpreter.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 89_478_485


class CorruptRecord(ValueError):
    """One record cannot be read; the others can."""


@dataclass(frozen=True)
class Record:
    """One sample of a source.

    Args:
        id: Name of the record inside its source, stable over runs (a file name or a position).
        image: Decoded picture, in the mode it was stored in.
        label: Class number, if the source has labels.
        caption: Text that describes the picture, if the source has captions.
    """

    id: str
    image: Image.Image
    label: int | None = None
    caption: str | None = None


class RecordSource(ABC):
    """A finite list of records in a fixed order; subclass it to read another kind of data.

    Subclasses keep their options in ``__init__`` and read files in ``_open``, which runs once.
    """

    _opened = False

    def prepare(self) -> None:
        """Download what is missing; called in one process a machine, before ``open``."""
        return

    def open(self) -> None:
        """Find the data and check it; later calls do nothing.

        Raises:
            FileNotFoundError: If a file or folder is missing.
            ValueError: If the data is not what the options say.
        """
        if not self._opened:
            self._open()
            self._opened = True

    @abstractmethod
    def _open(self) -> None:
        """Find the data and check it."""

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their numbers, or ``None`` where they have no names."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of records, readable ones or not."""

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Decode one record.

        Raises:
            CorruptRecord: If this record cannot be read.
        """


def decode_image(data: Path | bytes, *, max_pixels: int) -> Image.Image:
    """Decode one picture, turned the way its EXIF data says.

    Args:
        data: Path of a file, or the contents of one.
        max_pixels: Number of pixels above which a picture is refused before it is decoded.

    Raises:
        CorruptRecord: If the data is no picture in one of ``IMAGE_FORMATS``, damaged, missing or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below raises instead
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=IMAGE_FORMATS)
        with image:
            if image.width * image.height > max_pixels:
                raise CorruptRecord(f"{image.width} x {image.height} pixels are more than max_pixels={max_pixels}")
            image.load()
            return ImageOps.exif_transpose(image)
    except CorruptRecord:
        raise
    except Exception as error:  # a decoder may raise anything on damaged data
        raise CorruptRecord(f"{type(error).__name__}: {error}") from error


def check_max_pixels(max_pixels: int) -> int:
    """Return ``max_pixels`` if it lies between 1 and Pillow's own limit.

    Raises:
        ValueError: If it does not.
    """
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"max_pixels is {max_pixels}; allowed: 1 to {MAX_PIXELS} (Pillow's own limit)")
    return max_pixels


def check_labels(labels: Sequence[int], *, classes: list[str] | None, where: str) -> None:
    """Make sure that every label is the number of a class.

    Raises:
        ValueError: If one is negative, which data sets use for "unknown", or above the last named class.
    """
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0:
        raise ValueError(f"{where} holds label {low}; labels start at 0, so leave the labels out if they are unknown")
    if classes is not None and high >= len(classes):
        raise ValueError(f"{where} holds label {high} but only {len(classes)} classes are named; name them all")


def number_labels(
    values: Sequence[object], *, classes: list[str] | None, where: str
) -> tuple[list[int], list[str] | None]:
    """Turn class names into numbers; numbers stay as they are.

    Args:
        values: All labels of a source: whole numbers, or names.
        classes: Names in the order of their numbers; ``None`` sorts the names that occur.
        where: What the labels belong to, for messages.

    Returns:
        The numbers, and the names if there are any.

    Raises:
        ValueError: If numbers and names are mixed, a name is not in ``classes`` or a number has no name.
    """
    if all(type(value) is int for value in values):
        numbers = [value for value in values if isinstance(value, int)]
        check_labels(numbers, classes=classes, where=where)
        return numbers, classes
    names = [value for value in values if isinstance(value, str)]
    if len(names) != len(values):
        odd = next(value for value in values if not isinstance(value, str))
        raise ValueError(f"{where} holds {odd!r} among its labels; they must be all whole numbers or all names")
    known = sorted(set(names)) if classes is None else classes
    number_of = {name: number for number, name in enumerate(known)}
    unknown = sorted(set(names) - number_of.keys())
    if unknown:
        raise ValueError(f"{where} holds class {unknown[0]!r}, which is not among `classes`: {known}")
    return [number_of[name] for name in names], known
