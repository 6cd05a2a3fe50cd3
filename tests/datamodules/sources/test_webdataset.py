"""Tar shards are read as the webdataset package reads them, and named by the same patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules import TarStream
from datamodules.sources.tar import RawRecord
from sparsight.common.disk.inputs import expand_braces
from tests.tiny_files import png, write_shard, write_tar

NAMES = {  # keys and parts by the first dot of the name, in whichever folder
    "0.png": png(0), "0.txt": b"zero",
    "a/b.c/1.jpg": png(1), "a/b.c/1.txt": b"one", "a/b.c/1.meta.json": b"{}",
    "d/1.png": png(2), "d/1.TXT": b"two", "d/1.cls": b"3",
    "caf\u00e9 x.png": png(3), "caf\u00e9 x.txt": b"four",
    "__meta__/5.png": png(5), "e.seg.png": png(6), "e.txt": b"six",
}  # fmt: skip


def published(*shards: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Key and parts of every record, as webdataset has them."""
    opened = ({"url": str(shard), "stream": shard.open("rb")} for shard in shards)
    return [
        (record["__key__"], {name: part for name, part in record.items() if not name.startswith("__")})
        for record in group_by_keys(tar_file_expander(opened))
    ]


def ours(pattern: str) -> list[tuple[str, dict[str, bytes]]]:
    stream = TarStream(pattern)
    stream.open()
    found: list[Any] = [record for shard in range(stream.shards) for record in stream.read(shard, 0)]
    assert all(isinstance(record, RawRecord) for record in found)
    return [(record.key.partition("/")[2], record.parts) for record in found]


def test_records_have_the_keys_and_parts_of_webdataset(tmp_path: Path) -> None:
    write_tar(tmp_path / "odd.tar", NAMES)
    assert ours(str(tmp_path / "odd.tar")) == published(tmp_path / "odd.tar")
    assert len(published(tmp_path / "odd.tar")) == 5
    for number in range(3):
        write_shard(tmp_path / f"s-{number:02}.tar", 3 * number, 3)
    shards = [Path(name) for name in braceexpand(str(tmp_path / "s-{00..02}.tar"))]
    assert ours(str(tmp_path / "s-{00..02}.tar")) == published(*shards) and len(published(*shards)) == 9


@pytest.mark.parametrize(
    "pattern",
    [
        "train-{000000..000012}.tar",
        "{a,b}{1..3}",
        "{a,{1..3}x,}",
        "{08..11}",
        "{0..10..5}{3..1}",
        "{a..e..2}{e..a..-3}",
        "x",
    ],
)
def test_patterns_stand_for_what_they_do_there(pattern: str) -> None:
    assert list(expand_braces(pattern)) == list(braceexpand(pattern))
