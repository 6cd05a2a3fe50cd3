"""Tar shards as WebDataset writes them: members that share a key (``07.jpg``, ``07.txt``) are one record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from datamodules.sources.files import file_stamps
from datamodules.sources.identity import Part
from datamodules.sources.labels import ClassNumbers, NotALabel, refuse_names
from datamodules.sources.records import (
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
from datamodules.sources.tar_members import DamagedShard, Members, members_of, read_parts
from sparsight.common.disk.inputs import find_files
from sparsight.common.text import BadText, clean_text, decode_text, parse_json

_LOOKED_AT = 16  # records


@dataclass(frozen=True)
class TarFields:
    """Which parts of a record hold what.

    Args:
        caption: Part with the caption: a suffix such as ``txt``, or ``json.NAME`` for an entry of the json part.
        label: Part with the class, named likewise: its number, or its name where ``classes`` are given.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Images with more pixels are refused.
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
        image = self.image_of(key, parts)
        return Record(id=key, image=image, label=label, caption=caption)

    def image_of(self, key: str, parts: Mapping[str, bytes]) -> Image.Image:
        """The image among a record's parts.

        Raises:
            CorruptRecord: There is none, or it cannot be decoded; the message names the member.
        """
        part = _image_part(parts)
        try:
            return decode_image(parts[part], max_pixels=self.max_pixels)
        except CorruptRecord as error:
            raise CorruptRecord(f"member {key}.{part}: {error}") from error

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

    def check_labels(self, records: Iterable[tuple[Path, Members]]) -> None:
        """Refuse labels that are names without ``classes``, told by the first records of their shards.

        Raises:
            ValueError: They are.
        """
        if self.label is None or self.classes is not None:
            return
        values, path = [], Path()
        for path, members in islice(records, _LOOKED_AT):
            with suppress(CorruptRecord), path.open("rb") as file:
                values.append(_value(self.label, read_parts(file, members)))
        refuse_names(values, where=f"part {self.label!r} of {path}")

    def used(self, parts: Iterable[str]) -> list[str]:
        """Which of a record's parts are read, in the order of their names."""
        wanted = {"json" if name.startswith("json.") else name for name in (self.caption, self.label) if name}
        image = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
        return sorted(part for part in parts if part in wanted or part == image)

    @cached_property
    def number_of(self) -> ClassNumbers:
        """Finds the number of a label."""
        return ClassNumbers(self.classes)


def _part(name: str | None) -> str | None:
    """The name of a part as members give it: small letters, without the dot before it."""
    plain = None if name is None else name.removeprefix(".")
    return plain if plain is None or plain.startswith("json.") else plain.lower()


def _image_part(parts: Mapping[str, bytes]) -> str:
    found = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
    if found is None:
        raise CorruptRecord(f"no picture among its parts {sorted(parts)}")
    return found


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
        label: Part with the class, ``cls`` by custom: its number, or its name where ``classes`` are given.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Images with more pixels are refused.
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
        self.fields = TarFields(_part(caption), _part(label), classes, check_max_pixels(max_pixels))
        self._paths: list[Path] = []
        self._records: list[tuple[int, Members]] = []
        self._unused: list[str] = []

    def check_paths(self) -> None:
        """See that every path and pattern has files."""
        find_files(self.files, what="files")

    @cached_property
    def highest_label(self) -> int | None:
        """Highest class number that occurs, where classes have no names; reads the labels of all records."""
        part = "json" if (self.fields.label or "").startswith("json.") else self.fields.label
        if part is None or self.classes is not None:
            return None
        found = -1
        for shard, members in self._records:
            if part in members.parts and not members.bad:
                with suppress(CorruptRecord), self._paths[shard].open("rb") as file:
                    only = replace(members, parts={part: members.parts[part]})
                    found = max(found, self.fields.label_of(read_parts(file, only)) or 0)
        return None if found < 0 else found

    def _open(self) -> None:
        self._paths = find_files(self.files, what="files")
        self._records = [(shard, record) for shard, path in enumerate(self._paths) for record in members_of(path)]
        found = [(self._paths[shard].name, record) for shard, record in self._records]
        self._unused = [f"{shard}/{name}" for shard, record in found for name in record.unused]
        self.fields.check_labels((self._paths[shard], record) for shard, record in self._records)

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self.fields.classes

    @property
    def unused(self) -> list[str]:
        """Members that are no part of any record, and images beyond the one that is read of a record."""
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
        """Height and width of an image, from its header."""
        parts = self._read(index)
        return image_size(parts[_image_part(parts)])

    def label_of(self, index: int) -> int | None:
        """Class number of a record, without its image being decoded."""
        return None if self.fields.label is None else self.fields.label_of(self._read(index))

    def caption_of(self, index: int) -> str | None:
        """Caption of a record, without its image being decoded."""
        return None if self.fields.caption is None else self.fields.caption_of(self._read(index))

    def fingerprint(self) -> str:
        """Covers the options, and name, size and time of change of every shard."""
        self.open()
        return digest([self.fields, *file_stamps(self._paths)])

    def content(self) -> Iterator[object]:
        """Names of shards and records, and the members that are read."""
        self.open()
        changed = [path.stat().st_mtime_ns for path in self._paths]
        for shard, members in self._records:
            path = self._paths[shard]
            yield path.name, members.key, bool(members.bad)
            for part in self.fields.used(members.parts):
                start, size = members.parts[part]
                yield Part(part, size, path, start, changed[shard])

    def _read(self, index: int) -> dict[str, bytes]:
        self.open()
        shard, members = self._records[index]
        with self._paths[shard].open("rb") as file:
            return read_parts(file, members)


class RawRecord(NamedTuple):
    """A record as a stream reads it: key, contents by part, members beside it that are not used, and what is wrong."""

    key: str
    parts: dict[str, bytes]
    unused: list[str]
    bad: str = ""


class TarStream(RecordStream):
    """Records of tar shards, read from beginning to end; as many shards as processes times workers, or more.

    Args:
        files: As for ``TarRecords``; so are the other arguments.
        caption: Part with the caption.
        label: Part with the class.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Images with more pixels are refused.
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
        self.fields = TarFields(_part(caption), _part(label), classes, check_max_pixels(max_pixels))
        self._paths: list[Path] = []

    def check_paths(self) -> None:
        """See that every path and pattern has files."""
        find_files(self.files, what="files")

    def _open(self) -> None:
        self._paths = find_files(self.files, what="files")
        with suppress(DamagedShard):  # counted when it is read
            self.fields.check_labels((self._paths[0], members) for members in members_of(self._paths[0]))

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self.fields.classes

    @property
    def shards(self) -> int:
        """Number of files."""
        return len(self._paths)

    def content(self) -> Iterator[Part]:
        """The shards."""
        return (Part.of_file(path, name=path.name) for path in self._paths)

    def where(self, shard: int, position: int) -> str:
        """Shard and position."""
        return f"record {position} of {self._paths[shard]}"

    def left_out(self, raw: RawRecord) -> Sequence[str]:
        """Members that are no part of any record, and images beyond the one that is read of a record."""
        return raw.unused

    def read(self, shard: int, start: int) -> Iterator[RawRecord | CorruptRecord]:
        """Contents of the records; what is lost with a damaged shard's end counts as one corrupt record."""
        path = self._paths[shard]
        with path.open("rb") as file:
            try:
                for number, members in enumerate(members_of(path)):
                    if number >= start:
                        yield self._contents(file, path, members)
            except DamagedShard as error:
                yield CorruptRecord(str(error))

    def decode(self, raw: RawRecord) -> Record:
        """Decode the contents."""
        if raw.bad:
            raise CorruptRecord(raw.bad)
        return self.fields.decode(raw.key, raw.parts)

    @staticmethod
    def _contents(file: BinaryIO, path: Path, members: Members) -> RawRecord:
        key, unused = f"{path.name}/{members.key}", [f"{path.name}/{name}" for name in members.unused]
        try:
            return RawRecord(key, read_parts(file, members), unused)
        except CorruptRecord as error:
            return RawRecord(key, {}, unused, bad=str(error))
