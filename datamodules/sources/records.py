"""Record sources and streams: one interface over idx files, folders, parquet, tar shards and Hugging Face data sets.

A source is cheap to build (it only keeps its options, so a config can be parsed without the data), is opened once by
the datamodule, and decodes each record only when it is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from sparsight.common.text import check_text
from sparsight.lvlm.chat.conversation import Conversation

_log = logging.getLogger(__name__)


class CorruptRecord(ValueError):
    """One record cannot be read; the others can."""


@dataclass(frozen=True)
class Record:
    """One sample of a source.

    Args:
        id: Name of the record inside its source, stable over runs (a file name or a position).
        image: Decoded image, in the mode it was stored in; ``None`` where there is only text.
        label: Class number, if the source has labels.
        caption: Text that describes the image, if the source has captions.
        conversation: Dialogue about images, of which ``image`` is the first, if the source has conversations.

    Raises:
        CorruptRecord: The label is no class number, or the caption no text that a model should read.
    """

    id: str
    image: Image.Image | None
    label: int | None = None
    caption: str | None = None
    conversation: Conversation | None = None

    def __post_init__(self) -> None:
        if self.label is not None and (isinstance(self.label, bool) or operator.index(self.label) < 0):
            raise CorruptRecord(f"label {self.label!r} is not the number of a class")
        if self.caption is not None:
            try:
                check_text(self.caption)
            except ValueError as error:
                raise CorruptRecord(f"caption: {error}") from error

    @property
    def needed_image(self) -> Image.Image:
        """The image, for those who cannot do without.

        Raises:
            CorruptRecord: If there is none.
        """
        if self.image is None:
            raise CorruptRecord(f"record {self.id!r} has no image, only text; a data set of images needs one")
        return self.image

    @property
    def picture(self) -> Image.Image:
        """The old name of ``needed_image``, for one release."""
        warnings.warn("Record.picture is called needed_image now", FutureWarning, stacklevel=2)
        return self.needed_image


class Records(ABC):
    """What sources and streams share: they keep their options in ``__init__`` and find files in ``_open``, once."""

    _opened = False

    def prepare(self) -> None:
        """Download what is missing; called in one process a machine, before ``open``."""
        return

    def check_paths(self) -> None:  # noqa: B027  not every source has files
        """See that the files that the options name are there, before anything else is loaded; sources override this.

        Raises:
            FileNotFoundError: One is not; the message begins with the option.
        """

    @property
    def is_local(self) -> bool:
        """Whether it can be opened without ``prepare``; sources that know it of their data override this."""
        return type(self).prepare is Records.prepare

    def open(self) -> None:
        """Find the data and check it; later calls do nothing.

        Raises:
            FileNotFoundError: If a file or folder is missing.
            ValueError: If the data is not what the options say.
        """
        if not self._opened:
            self._open()
            self._opened = True
            if self.unused:
                tell(self, unused_message(self.unused))
            for note in self.notes:
                tell(self, note)

    @abstractmethod
    def _open(self) -> None:
        """Find the data and check it."""

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their numbers, or ``None`` where they have no names."""

    @property
    def highest_label(self) -> int | None:
        """Highest class number, where it is known without reading all records; sources that know it override this."""
        return None

    @property
    def unused(self) -> list[str]:
        """Files and members of shards that were found but are no part of any record; sources of files override this."""
        return []

    @property
    def notes(self) -> list[str]:
        """What else is told once when data are opened; sources that leave anything aside override this."""
        return []

    def content(self) -> Iterator[object]:
        """What the records of opened data are made of, in their order, by which a run knows its data again.

        Plain values, and a ``datamodules.sources.identity.Part`` for each file or member; nothing that tells where
        the data are. Sources of files override this; of others eight records are compared.
        """
        return iter(())


@rank_zero_only
def tell(records: Records, text: str) -> None:
    """Log what whoever gave the data should know."""
    _log.warning("%s: %s", type(records).__name__, text)


def unused_message(unused: Sequence[str]) -> str:
    """Say how many files are not used, and show the first three."""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in unused[:3])
    return f"{len(unused)} files are not used: {shown}{' ...' if len(unused) > 3 else ''}"


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

    @property
    def parts(self) -> Sequence[RecordSource]:
        """The sources that this one is made of; it itself where it finds the data."""
        return (self,)

    @property
    def bad(self) -> Mapping[int, str]:
        """Records that cannot be used, with the reason, as far as an open source knows before it reads any."""
        return {}

    def where(self, index: int) -> str:
        """Where one record comes from, for messages; sources that can name a file override this."""
        return f"record {index} of {type(self).__name__}"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of one image; sources that can tell from its header override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        image = self[index].needed_image
        return image.height, image.width

    def label_of(self, index: int) -> int | None:
        """Class number of one record; sources that can tell without its image override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        return self[index].label

    def caption_of(self, index: int) -> str | None:
        """Caption of one record; sources that can tell without its image override this.

        Raises:
            CorruptRecord: If this record cannot be read.
        """
        return self[index].caption

    def extent(self, index: int) -> tuple[int, int]:
        """Number of images and of characters of one record; sources that can tell without images override this.

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


def has_field(source: RecordSource, name: Literal["label", "caption"]) -> bool:
    """Whether the records of an opened source have labels or captions; asks up to 16 of them, wide apart."""
    step = max(1, len(source) // 16)
    for index in range(0, len(source), step):
        with suppress(CorruptRecord):  # found again, counted and reported when it is needed
            if (source.label_of(index) if name == "label" else source.caption_of(index)) is not None:
                return True
    return False


class RecordStream(Records):
    """Records that are read one after the other, for data sets too large to index; subclass it to read another kind.

    They come in shards, such as files, which processes share out among themselves.
    """

    @property
    @abstractmethod
    def shards(self) -> int:
        """Number of shards, once the stream is open."""

    def where(self, shard: int, position: int) -> str:
        """Where a record comes from, for messages; streams that can name a file override this."""
        return f"record {position} of shard {shard} of {type(self).__name__}"

    def left_out(self, raw: Any) -> Sequence[str]:
        """Files or members beside what ``read`` gave that are no part of any record."""
        return ()

    @abstractmethod
    def read(self, shard: int, start: int) -> Iterator[Any]:
        """Records of a shard from position ``start`` on, always in the same order, to be decoded when needed.

        What cannot be read is a ``CorruptRecord`` in its place.
        """

    @abstractmethod
    def decode(self, raw: Any) -> Record:
        """Decode one record of ``read``.

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
