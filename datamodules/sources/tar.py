"""Tar shards as WebDataset writes them: members that share a key (``07.jpg``, ``07.txt``) are one record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, image_size
from datamodules.sources.files import file_stamps
from datamodules.sources.identity import Part
from datamodules.sources.records import CorruptRecord, Record, RecordSource, RecordStream, digest
from datamodules.sources.tar_parts.fields import TarFields, image_part, part_name
from datamodules.sources.tar_parts.members import DamagedShard, Members, members_of, read_parts
from sparsight.common.disk.inputs import find_files


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
        self.fields = TarFields(part_name(caption), part_name(label), classes, check_max_pixels(max_pixels))
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
        return image_size(parts[image_part(parts)])

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
        self.fields = TarFields(part_name(caption), part_name(label), classes, check_max_pixels(max_pixels))
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
