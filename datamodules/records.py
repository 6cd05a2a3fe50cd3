"""Record sources and streams: one interface over idx files, folders, parquet, tar shards and Hugging Face data sets.

A source is cheap to build (it only keeps its options, so a config can be parsed without the data), is opened once by
the datamodule, and decodes each record only when it is asked for.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sparsight.lvlm.conversation import Conversation

# Formats that Pillow decodes itself: EPS, for one, would start an external interpreter.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 89_478_485
_ORIENTATION = 0x0112  # EXIF tag; values of 5 and above turn the picture on its side


class CorruptRecord(ValueError):
    """One record cannot be read; the others can."""


@dataclass(frozen=True)
class Record:
    """One sample of a source.

    Args:
        id: Name of the record inside its source, stable over runs (a file name or a position).
        image: Decoded picture, in the mode it was stored in; ``None`` where there is only text.
        label: Class number, if the source has labels.
        caption: Text that describes the picture, if the source has captions.
        conversation: Dialogue about pictures, of which ``image`` is the first, if the source has conversations.
    """

    id: str
    image: Image.Image | None
    label: int | None = None
    caption: str | None = None
    conversation: Conversation | None = None

    @property
    def picture(self) -> Image.Image:
        """The picture, for those who cannot do without.

        Raises:
            CorruptRecord: If there is none.
        """
        if self.image is None:
            raise CorruptRecord(f"record {self.id!r} has no image, only text; a data set of images needs one")
        return self.image


class Records(ABC):
    """What sources and streams share: they keep their options in ``__init__`` and find files in ``_open``, once."""

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


class RecordSource(Records):
    """A finite list of records in a fixed order; subclass it to read another kind of data."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of records, readable ones or not."""

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Decode one record.

        Raises:
            CorruptRecord: If this record cannot be read.
        """

    def where(self, index: int) -> str:
        """Where one record comes from, for messages; sources that can name a file override this."""
        return f"record {index} of {type(self).__name__}"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one picture; sources that can tell from its header override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        image = self[index].picture
        return image.height, image.width

    def label_of(self, index: int) -> int | None:
        """Class number of one record; sources that can tell without its picture override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        return self[index].label

    def caption_of(self, index: int) -> str | None:
        """Caption of one record; sources that can tell without its picture override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        return self[index].caption

    def extent(self, index: int) -> tuple[int, int]:
        """Number of pictures and of characters of one record; sources that can tell without pictures override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        record = self[index]
        if record.conversation is not None:
            return record.conversation.extent
        return int(record.image is not None), len(record.caption or "")

    def fingerprint(self) -> str:
        """Text that changes when the records do, by which caches know theirs; here it covers the options alone.

        Sources whose data can change under equal options override this.
        """
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return digest([type(self).__name__, len(self), *sorted(options.items())])


class RecordStream(Records):
    """Records that are read one after the other, for data sets too large to index; subclass it to read another kind.

    They come in shards, such as files, which processes share out among themselves.
    """

    @property
    @abstractmethod
    def shards(self) -> int:
        """Number of shards, once the stream is open."""

    @abstractmethod
    def read(self, shard: int, start: int) -> Iterator[Any]:
        """Records of a shard from position ``start`` on, always in the same order, to be decoded when needed.

        What cannot be read is a :class:`CorruptRecord` in its place.
        """

    @abstractmethod
    def decode(self, raw: Any) -> Record:
        """Decode one record of :meth:`read`.

        Raises:
            CorruptRecord: If this record cannot be read.
        """


def digest(parts: Iterable[object]) -> str:
    """SHA-256 over the texts of ``parts``."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part!r}\n".encode())
    return found.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """SHA-256 over the numbers of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def find_files(files: str | list[str], *, what: str) -> list[Path]:
    """Files by path or pattern (``data/*.tar``), or a list of such; each pattern's in the order of their names.

    Raises:
        FileNotFoundError: A path or pattern has none.
    """
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        matches = sorted(path for path in map(Path, glob(pattern, recursive=True)) if path.is_file())
        if not matches:
            raise FileNotFoundError(f"{what}: there is no file {pattern}")
        found += matches
    if not found:
        raise FileNotFoundError(f"{what}: no file is given")
    return found


def file_stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of files: what a fingerprint of many files can afford to look at."""
    return [(path.name, stat.st_size, stat.st_mtime_ns) for path in paths if (stat := path.stat())]


def decode_image(data: Path | bytes, *, max_pixels: int) -> Image.Image:
    """Decode one picture, turned the way its EXIF data says.

    Args:
        data: Path of a file, or the contents of one.
        max_pixels: Number of pixels above which a picture is refused before it is decoded.

    Raises:
        CorruptRecord: If the data is no picture in one of ``IMAGE_FORMATS``, damaged, missing or too large.
    """
    with _opened_image(data) as image:
        if image.width * image.height > max_pixels:
            raise CorruptRecord(f"{image.width} x {image.height} pixels are more than max_pixels={max_pixels}")
        image.load()
        return ImageOps.exif_transpose(image)


def image_size(data: Path | bytes) -> tuple[int, int]:
    """Height and width of a picture, turned the way its EXIF data says, from its header alone.

    Raises:
        CorruptRecord: If the data is no picture in one of ``IMAGE_FORMATS``, damaged or missing.
    """
    with _opened_image(data) as image:
        # Pillow decodes a whole PNG to look for EXIF data behind its pixels; there it is next to unknown
        turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _opened_image(data: Path | bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode_image raises instead
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=IMAGE_FORMATS)
        with image:
            yield image
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
