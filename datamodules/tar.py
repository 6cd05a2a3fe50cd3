"""Tar shards as WebDataset writes them: members that share a key (``07.jpg``, ``07.txt``) are one record."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from datamodules.records import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    CorruptRecord,
    Record,
    RecordSource,
    RecordStream,
    check_max_pixels,
    decode_image,
    digest,
    file_stamps,
    find_files,
    image_size,
)

MAX_BYTES = 1 << 28  # of one member; a picture of the most pixels takes less


class DamagedShard(ValueError):
    """The structure of a tar file ends before the file is over."""


@dataclass
class Members:
    """Where the parts of a record lie in its shard: offset and bytes, by what follows the first dot of their names."""

    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)


def members_of(path: Path) -> Iterator[Members]:
    """The records of a shard, from the headers alone. Nothing is unpacked, so names and links lead nowhere.

    Raises:
        DamagedShard: A header is damaged, or the file is cut off.
    """
    current: Members | None = None
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                stem, _, part = name.name.partition(".")
                if not member.isreg() or member.sparse is not None or not stem or not part:
                    continue
                key = str(name.parent / stem)
                if current is not None and current.key != key:
                    yield current
                    current = None
                current = current or Members(key)
                current.parts[part.lower()] = (member.offset_data, member.size)
            end = shard.offset
    except tarfile.TarError as error:
        raise DamagedShard(f"{path} is damaged or cut off, or no plain tar file ({error}): fetch it again") from error
    if current is not None:
        yield current
    with path.open("rb") as file:  # tarfile takes a damaged header, too, for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise DamagedShard(f"{path} is damaged at byte {end}, or cut off there: fetch it again")


def read_parts(file: BinaryIO, members: Members) -> dict[str, bytes]:
    """The contents of a record's members.

    Raises:
        CorruptRecord: A member is cut off or too large.
    """
    contents = {}
    for part, (offset, size) in members.parts.items():
        if size > MAX_BYTES:
            raise CorruptRecord(f"{members.key}.{part} of {size} bytes is larger than {MAX_BYTES}")
        file.seek(offset)
        contents[part] = file.read(size)
        if len(contents[part]) != size:
            raise CorruptRecord(f"{members.key}.{part} is cut off")
    return contents


@dataclass(frozen=True)
class TarFields:
    """Which parts of a record hold what.

    Args:
        caption: Part with the caption: a suffix such as ``txt``, or ``json.NAME`` for an entry of the json part.
        label: The same for the class: its number, or its name where ``classes`` are given.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Pictures with more pixels are refused.
    """

    caption: str | None
    label: str | None
    classes: list[str] | None
    max_pixels: int

    def decode(self, key: str, parts: Mapping[str, bytes]) -> Record:
        """Decode a record's parts.

        Raises:
            CorruptRecord: A part is missing or cannot be read.
        """
        caption = None if self.caption is None else str(_value(self.caption, parts))
        label = None if self.label is None else self._number(_value(self.label, parts))
        image = decode_image(_picture(parts), max_pixels=self.max_pixels)
        return Record(id=key, image=image, label=label, caption=caption)

    def _number(self, value: str | int) -> int:
        known = self.classes
        if known is not None and isinstance(value, str) and value in known:
            return known.index(value)
        text = str(value)
        if not text.isdecimal() or (known is not None and int(text) >= len(known)):
            raise CorruptRecord(f"label {text[:40]!r} is neither the name nor the number of a class")
        return int(text)


def _picture(parts: Mapping[str, bytes]) -> bytes:
    found = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
    if found is None:
        raise CorruptRecord(f"no picture among its parts {sorted(parts)}")
    return parts[found]


def _value(wanted: str, parts: Mapping[str, bytes]) -> str | int:
    part, _, entry = wanted.partition(".") if wanted.startswith("json.") else (wanted, "", "")
    if part not in parts:
        raise CorruptRecord(f"no part {part!r} among its parts {sorted(parts)}")
    try:
        text = parts[part].decode("utf-8")
        value = json.loads(text)[entry] if entry else text.strip()
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"part {wanted!r}: {type(error).__name__}: {error}") from error
    if not isinstance(value, (str, int)):
        raise CorruptRecord(f"part {wanted!r} holds {type(value).__name__}, neither a text nor a whole number")
    return value


class TarRecords(RecordSource):
    """Records of tar shards, any of which can be read: opening goes through the headers of all of them.

    Args:
        files: Path or pattern such as ``data/*.tar``, or a list of them; tar files that are not compressed.
        caption: Part with the caption: a suffix such as ``txt``, or ``json.NAME`` for an entry of the json part.
        label: The same for the class, ``cls`` by custom: its number, or its name where ``classes`` are given.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Pictures with more pixels are refused.
    """

    def __init__(
        self,
        files: str | list[str],
        caption: str | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files = files
        self.fields = TarFields(caption, label, classes, check_max_pixels(max_pixels))
        self._paths: list[Path] = []
        self._records: list[tuple[int, Members]] = []

    def _open(self) -> None:
        self._paths = find_files(self.files, what="files")
        self._records = [(shard, record) for shard, path in enumerate(self._paths) for record in members_of(path)]

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self.fields.classes

    def __len__(self) -> int:
        """Number of records, readable or not."""
        self.open()
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Read and decode one record."""
        self.open()
        shard, members = self._records[index]
        return self.fields.decode(f"{self._paths[shard].name}/{members.key}", self._read(index))

    def where(self, index: int) -> str:
        """Shard and key."""
        self.open()
        shard, members = self._records[index]
        return f"record {members.key} of {self._paths[shard]}"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, from its header."""
        self.open()
        return image_size(_picture(self._read(index)))

    def fingerprint(self) -> str:
        """Covers the options, and name, size and time of change of every shard."""
        self.open()
        return digest([self.fields, *file_stamps(self._paths)])

    def _read(self, index: int) -> dict[str, bytes]:
        shard, members = self._records[index]
        with self._paths[shard].open("rb") as file:
            return read_parts(file, members)


class TarStream(RecordStream):
    """Records of tar shards, read from beginning to end; as many shards as processes times workers, or more.

    Args:
        files: As for :class:`TarRecords`; so are the other arguments.
        caption: Part with the caption.
        label: Part with the class.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Pictures with more pixels are refused.
    """

    def __init__(
        self,
        files: str | list[str],
        caption: str | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files = files
        self.fields = TarFields(caption, label, classes, check_max_pixels(max_pixels))
        self._paths: list[Path] = []

    def _open(self) -> None:
        self._paths = find_files(self.files, what="files")

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self.fields.classes

    @property
    def shards(self) -> int:
        """Number of files."""
        return len(self._paths)

    def read(self, shard: int, start: int) -> Iterator[tuple[str, dict[str, bytes]] | CorruptRecord]:
        """Contents of the records; what is lost with a damaged shard's end counts as one corrupt record."""
        path = self._paths[shard]
        with path.open("rb") as file:
            try:
                for number, members in enumerate(members_of(path)):
                    if number >= start:
                        yield self._contents(file, path, members)
            except DamagedShard as error:
                yield CorruptRecord(str(error))

    def decode(self, raw: tuple[str, dict[str, bytes]]) -> Record:
        """Decode the contents."""
        return self.fields.decode(*raw)

    @staticmethod
    def _contents(file: BinaryIO, path: Path, members: Members) -> tuple[str, dict[str, bytes]] | CorruptRecord:
        try:
            return f"{path.name}/{members.key}", read_parts(file, members)
        except CorruptRecord as error:
            return error
