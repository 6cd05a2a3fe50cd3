"""Members of tar shards, grouped into records by their headers alone.

WebDataset's rule for keys: folder and name up to the first dot; a record's members stand next to each other. The
package of that name is not used, as it reads streams alone: here any record can be read by its number, a run goes on in
the middle of a shard, and what is damaged, twice there or left aside is named and counted. Tests compare the two.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from datamodules.sources.decoding import IMAGE_SUFFIXES
from datamodules.sources.files import is_about_the_data
from datamodules.sources.records import CorruptRecord
from sparsight.common.disk.inputs import is_left_behind

MAX_BYTES = 1 << 28  # of one member; an image of the most pixels takes less
_PIECE = 1 << 20  # bytes
_ABOUT = re.compile(r"__[^/]*__(/|$)")  # WebDataset's mark of what is about the shard
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
        """Add a member; images beyond the one that is read are not used."""
        is_image = _is_image(part)
        if part in self.parts:
            self.bad = self.bad or f"member {member.name!r} is there twice; {_RULE}"
        elif is_image and "." in part and any("." in other and _is_image(other) for other in self.parts):
            self.bad = self.bad or f"member {member.name!r} and others have one key; {_RULE}"
        if is_image and (self.bad or any(map(_is_image, self.parts))):
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
        about = (is_about_the_data(member.name) and not _is_image(part)) or _ABOUT.match(member.name)
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
    elif unused:
        yield Members("", bad="the shard holds no record", unused=unused)


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
    except Exception as error:  # a parser may raise anything on damaged data, and seek where a negative size leads
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedShard(f"{path} is damaged or cut off, or no plain tar file ({error}): fetch it again") from error
    with path.open("rb") as rest:  # tarfile takes a damaged header, too, for the end
        rest.seek(end)
        if rest.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise DamagedShard(f"{path} is damaged at byte {end}, or cut off there: fetch it again")
        while piece := rest.read(_PIECE):
            if piece.strip(tarfile.NUL):
                raise DamagedShard(
                    f"{path} goes on behind the mark of its end at byte {end}: it is damaged there, fetch it again, or "
                    "several were joined, then keep each in a file of its own"
                )


def read_parts(file: BinaryIO, members: Members) -> dict[str, bytes]:
    """The contents of a record's members.

    Raises:
        CorruptRecord: A member is cut off or too large, or several records have this one's key.
    """
    if members.bad:
        raise CorruptRecord(f"{members.key}: {members.bad}".removeprefix(": "))
    contents = {}
    for part, (offset, size) in members.parts.items():
        if size > MAX_BYTES:
            raise CorruptRecord(f"{members.key}.{part} of {size} bytes is larger than {MAX_BYTES}")
        file.seek(offset)
        contents[part] = file.read(size)
        if len(contents[part]) != size:
            raise CorruptRecord(f"{members.key}.{part} is cut off")
    return contents


def _is_image(part: str) -> bool:
    return f".{part.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
