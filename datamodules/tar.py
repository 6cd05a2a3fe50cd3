"""Tar shards as WebDataset writes them: members that share a key (``07.jpg``, ``07.txt``) are one record.

WebDataset's rule for keys: folder and name up to the first dot; a record's members stand next to each other.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from datamodules.files import file_stamps, find_files, is_about_the_data, is_left_behind
from datamodules.labels import ClassNumbers, NotALabel
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
    image_size,
)
from sparsight.common.text import BadText, clean_text, decode_text, parse_json

MAX_BYTES = 1 << 28  # of one member; a picture of the most pixels takes less
_RULE = "the key is what stands before the first dot, so give every picture a name of its own without other dots"


class DamagedShard(ValueError):
    """The structure of a tar file ends before the file is over."""


@dataclass
class Members:
    """Where the parts of a record lie in its shard: offset and bytes, by what follows the first dot of their names.

    Args:
        key: Folder and name up to the first dot.
        parts: The parts.
        bad: Why the record cannot be used, for example because other records have its key.
        unused: Members that are no part of any record: of this one's key, or between it and the one before.
    """

    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    bad: str = ""
    unused: list[str] = field(default_factory=list)

    def add(self, part: str, member: tarfile.TarInfo) -> None:
        """Add a member; pictures beyond the one that is read are not used."""
        is_picture = _is_picture(part)
        if part in self.parts:
            self.bad = self.bad or f"member {member.name!r} is there twice; {_RULE}"
        elif is_picture and "." in part and any("." in other and _is_picture(other) for other in self.parts):
            self.bad = self.bad or f"member {member.name!r} and others have one key; {_RULE}"
        if is_picture and (self.bad or any(map(_is_picture, self.parts))):
            self.unused.append(member.name)
        self.parts.setdefault(part, (member.offset_data, member.size))


def members_of(path: Path) -> Iterator[Members]:
    """The records of a shard, from the headers alone. Nothing is unpacked, so names and links lead nowhere.

    Raises:
        DamagedShard: A header is damaged, or the file is cut off.
    """
    current: Members | None = None
    unused: list[str] = []
    for member in _headers(path):
        name = PurePosixPath(member.name)
        stem, _, part = name.name.partition(".")
        about = is_about_the_data(member.name) and not _is_picture(part)
        if is_left_behind(member.name.lstrip("/")) or member.isdir() or about:
            continue
        if not member.isreg() or member.sparse is not None or not stem or not part:
            unused.append(member.name)
            continue
        key = str(name.parent / stem).encode("utf-8", "backslashreplace").decode()
        if current is not None and current.key != key:
            yield current
            current = None
        if current is None:
            current, unused = Members(key, unused=unused), []
        current.add(part.lower(), member)
    if current is not None:
        current.unused += unused
        yield current


class _HeldShard(io.FileIO):
    """A file that reads no more than there is, whatever a header promises."""

    def read(self, size: int | None = -1, /) -> Any:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    end = before = 0
    try:
        with _HeldShard(path) as file, tarfile.open(fileobj=file, mode="r:") as shard:
            length = path.stat().st_size
            for member in shard:
                if member.size < 0 or member.offset_data + member.size > length or member.offset_data <= before:
                    raise tarfile.ReadError(f"member {member.name[:80]!r} has {member.size} bytes, {length} are there")
                before = member.offset_data
                yield member
            end = shard.offset
    except OSError:
        raise
    except Exception as error:  # a parser may raise anything on damaged data
        raise DamagedShard(f"{path} is damaged or cut off, or no plain tar file ({error}): fetch it again") from error
    with path.open("rb") as rest:  # tarfile takes a damaged header, too, for the end
        rest.seek(end)
        if rest.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise DamagedShard(f"{path} is damaged at byte {end}, or cut off there: fetch it again")


def read_parts(file: BinaryIO, members: Members) -> dict[str, bytes]:
    """The contents of a record's members.

    Raises:
        CorruptRecord: A member is cut off or too large, or several records have this one's key.
    """
    if members.bad:
        raise CorruptRecord(f"{members.key}: {members.bad}")
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
        caption = None if self.caption is None else self.caption_of(parts)
        label = None if self.label is None else self.label_of(parts)
        image = decode_image(_picture(parts), max_pixels=self.max_pixels)
        return Record(id=key, image=image, label=label, caption=caption)

    def caption_of(self, parts: Mapping[str, bytes]) -> str | None:
        """Caption among a record's parts.

        Raises:
            CorruptRecord: It is not there, or no text.
        """
        try:
            return None if self.caption is None else clean_text(_value(self.caption, parts), what=self.caption)
        except BadText as error:
            raise CorruptRecord(str(error)) from error

    def label_of(self, parts: Mapping[str, bytes]) -> int | None:
        """Class number among a record's parts.

        Raises:
            CorruptRecord: It is not there, or neither name nor number of a class.
        """
        try:
            return None if self.label is None else self.number_of(_value(self.label, parts))
        except NotALabel as error:
            raise CorruptRecord(f"part {self.label!r}: {error}") from error

    @cached_property
    def number_of(self) -> ClassNumbers:
        """Finds the number of a label."""
        return ClassNumbers(self.classes)


def _is_picture(part: str) -> bool:
    return f".{part.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES


def _picture(parts: Mapping[str, bytes]) -> bytes:
    found = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
    if found is None:
        raise CorruptRecord(f"no picture among its parts {sorted(parts)}")
    return parts[found]


def _value(wanted: str, parts: Mapping[str, bytes]) -> Any:
    part, _, entry = wanted.partition(".") if wanted.startswith("json.") else (wanted, "", "")
    if part not in parts:
        raise CorruptRecord(f"no part {part!r} among its parts {sorted(parts)}")
    try:
        text = decode_text(parts[part])
        return parse_json(text)[entry] if entry else text
    except (BadText, KeyError, TypeError) as error:
        raise CorruptRecord(f"part {wanted!r}: {type(error).__name__}: {error}") from error


class TarRecords(RecordSource):
    """Records of tar shards, any of which can be read: opening goes through the headers of all of them.

    Args:
        files: Path, pattern (``data/*.tar``, ``data/{000..012}.tar``), or a list of them; not compressed.
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
        self._unused: list[str] = []

    def _open(self) -> None:
        self._paths = find_files(self.files, what="files")
        self._records = [(shard, record) for shard, path in enumerate(self._paths) for record in members_of(path)]
        found = [(self._paths[shard].name, record) for shard, record in self._records]
        self._unused = [f"{shard}/{name}" for shard, record in found for name in record.unused]

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self.fields.classes

    @property
    def unused(self) -> list[str]:
        """Members that are no part of any record, and pictures beyond the one that is read of a record."""
        return self._unused

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
        return image_size(_picture(self._read(index)))

    def label_of(self, index: int) -> int | None:
        """Class number of a record, without its picture being decoded."""
        return None if self.fields.label is None else self.fields.label_of(self._read(index))

    def caption_of(self, index: int) -> str | None:
        """Caption of a record, without its picture being decoded."""
        return None if self.fields.caption is None else self.fields.caption_of(self._read(index))

    def fingerprint(self) -> str:
        """Covers the options, and name, size and time of change of every shard."""
        self.open()
        return digest([self.fields, *file_stamps(self._paths)])

    def _read(self, index: int) -> dict[str, bytes]:
        self.open()
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
