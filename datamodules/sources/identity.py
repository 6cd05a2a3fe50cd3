"""What tells whether two sources hold the same records, wherever they are and whenever they were copied."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.sources.records import CorruptRecord, Records, RecordSource

LOOKED_AT = 8
WHOLE = 4 << 30  # bytes of a source that are read whole; of larger ones about as many, in samples
_PIECE = 4096  # bytes of a sample
_BLOCK = 1 << 20  # bytes read at once
_READERS = 8  # threads: on a file system in the network most of the time is waiting
_MISSING = b"missing"


@dataclass(frozen=True)
class Part:
    """Bytes that records are made of.

    Args:
        name: Of the file inside the data, or of the member or column; "" where the place tells it.
        size: In bytes; -1 for a file that is not there.
        data: The file that holds them, or they themselves.
        start: Where they begin in it.
        changed: Time of the file's last change in nanoseconds; 0 if there is none.
    """

    name: str
    size: int
    data: Any
    start: int = 0
    changed: int = 0

    @classmethod
    def of_file(cls, path: Path, *, name: str) -> Part:
        """All of a file."""
        name = unicodedata.normalize("NFC", name)
        try:
            found = path.stat()
        except (OSError, ValueError):
            return cls(name, -1, path)
        plain = stat.S_ISREG(found.st_mode)
        return cls(name, found.st_size, path, changed=found.st_mtime_ns) if plain else cls(name, -1, path)

    def digest(self, share: float) -> bytes:
        """SHA-256 over a share of the bytes, 0 to 1: samples evenly spaced, the first and last bytes among them."""
        found = hashlib.sha256()
        try:
            if not isinstance(self.data, Path):
                whole = memoryview(self.data)
                for start, size in _spans(self.size, share):
                    found.update(whole[start : start + size])
                return found.digest()
            with open(self.data, "rb", buffering=0) as file:
                for start, size in _spans(self.size, share):
                    found.update(os.pread(file.fileno(), size, self.start + start))
        except OSError:
            return _MISSING
        return found.digest()


def identity_of(source: Records) -> dict[str, Any]:
    """Plain facts of opened data that are equal for equal data.

    Returns:
        ``content``: SHA-256 over all that the source tells of its content; ``changed``: newest time of change of its
        files, where they are too many to be read whole; of a list of records their number, ``records``, and ``sha256``
        over eight of them.
    """
    facts = _sampled(source) if isinstance(source, RecordSource) else {}
    return facts | _content_of(source)


def _sampled(source: RecordSource) -> dict[str, Any]:
    digest = hashlib.sha256()
    count = len(source)
    for position in sorted({number * (count - 1) // (LOOKED_AT - 1) for number in range(LOOKED_AT)} if count else ()):
        try:
            record = source[position]
        except CorruptRecord:
            digest.update(b"corrupt")
            continue
        digest.update(repr((record.id, record.label, record.caption)).encode())
        if record.image is not None:
            digest.update(f"{record.image.mode} {record.image.size}".encode() + record.image.tobytes())
    return {"records": count, "sha256": digest.hexdigest()}


def _content_of(source: Records) -> dict[str, Any]:
    total = count = changed = 0
    for each in source.content():
        count += 1
        if isinstance(each, Part):
            total, changed = total + max(0, each.size), max(changed, each.changed)
    if not count:
        return {}
    share = min(1.0, WHOLE / max(1, total))
    found, left = hashlib.sha256(repr(source.classes).encode()), source.content()
    with ThreadPoolExecutor(_READERS) as readers:
        while some := list(islice(left, 1024)):
            for line in readers.map(partial(_line, share=share), some):
                found.update(line)
    return {"content": found.hexdigest()} | ({} if share == 1 else {"changed": changed})


def _line(each: object, *, share: float) -> bytes:
    if not isinstance(each, Part):
        return f"{each!r}\n".encode("utf-8", "surrogatepass")
    content = _MISSING if each.size < 0 else each.digest(share)
    return f"{each.name!r} {each.size} {content.hex()}\n".encode("utf-8", "surrogatepass")


def _spans(size: int, share: float) -> Iterator[tuple[int, int]]:
    """First byte and length of what is read."""
    samples = max(2, int(size * share) // _PIECE)
    if share < 1 and samples * _PIECE < size:
        yield from ((number * (size - _PIECE) // (samples - 1), _PIECE) for number in range(samples))
    else:
        yield from ((start, min(_BLOCK, size - start)) for start in range(0, size, _BLOCK))
