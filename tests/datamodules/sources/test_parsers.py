"""Broken inputs by the thousand: each gives a right record or one kind of error, never another one, a hang or a flood.

``make test`` tries some hundred of them, ``make test-faults`` more than 20 000.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules import (
    ConversationRecords,
    CorruptRecord,
    FolderRecords,
    HuggingFaceStream,
    IdxRecords,
    Record,
    RecordSource,
    TarRecords,
    TarStream,
)
from datamodules.conversations.huggingface_conversations import HuggingFaceConversations
from datamodules.sources.decoding import decode_image
from datamodules.sources.labels import ClassNumbers, NotALabel, number_labels
from sparsight.common.disk.inputs import find_files
from tests.tiny_files import png, write_files

MOST_MEMORY = 64 << 20  # bytes; files here have some thousand


def some(fast: int, many: int) -> Any:
    """How many inputs are tried, a few always and many with the faults."""
    return pytest.mark.parametrize("count", [fast, pytest.param(many, marks=pytest.mark.faults)])


def try_out(count: int, check: Callable[..., None], *strategies: Any) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    settings(max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=quiet)(
        given(*strategies)(check)
    )()


def in_little_memory(check: Callable[..., None]) -> Callable[..., None]:
    """Of what one input takes alone: what pytest and hypothesis keep of all of them grows with their number."""

    @functools.wraps(check)
    def measured(**inputs: Any) -> None:
        tracemalloc.start()
        try:
            check(**inputs)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()

    return measured


def read_all(source: RecordSource) -> int:
    """Number of records that can be read; all that goes wrong must be told in one of the two ways."""
    try:
        source.open()
    except ValueError as error:
        assert str(error)
        return 0
    read = 0
    for index in range(len(source)):
        for part in (source.label_of, source.caption_of, source.extent, source.size, source.where):
            with suppress(CorruptRecord):
                part(index)
        try:
            record = source[index]
        except CorruptRecord as error:
            assert str(error)
            continue
        assert isinstance(record, Record)
        turns = () if record.conversation is None else record.conversation.turns
        for text in (record.caption, *(turn.text for turn in turns)):
            assert text is None or text.isascii() or text.encode().decode() == text
            assert "\0" not in (text or "")
        assert record.label is None or source.classes is None or 0 <= record.label < len(source.classes)
        read += 1
    source.fingerprint()
    return read


ODD_TEXTS = st.sampled_from(
    ["", " ", "a cat", "\ufeffa", "a \ud83d", "\0", "1e999", "-1", "2", "10", "3.0", "NaN", "9" * 5000, "caf\u00e9"]
) | st.sampled_from(
    [
        "a,b",
        '"',
        "\r\n",
        "0.png",
        "../0.png",
        "/etc/passwd",
        "x" * 5000,
        "0.png\0",
        "<|im_end|>",
        "\u2028",
        ".",
        "\x1b[",
    ]
)
TEXTS = ODD_TEXTS | st.text(max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=6)
ROWS = st.dictionaries(st.sampled_from(["file_name", "text", "label", "x"]) | TEXTS, VALUES, max_size=5)
GOOD_ROWS = st.fixed_dictionaries({"file_name": st.just("0.png"), "text": TEXTS, "label": SCALARS})
DEEP = st.sampled_from(['{"file_name":' + "[" * 9999, "[" * 99_999, '{"a":' * 9999])
CHANGES = st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=4)


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def changed(data: bytes, changes: list[tuple[int, int]], end: int | None = None) -> bytes:
    """Some bytes replaced, and the rest cut off behind one."""
    new = bytearray(data)
    for place, value in changes:
        if new:
            new[place % len(new)] = value
    return bytes(new if end is None else new[: end % (len(new) + 1)])


@some(20, 1500)
def test_tables_of_pictures(tmp_path: Path, count: int) -> None:
    write_files(tmp_path, {"j/0.png": png(), "c/0.png": png(), "j/metadata.jsonl": b"", "c/metadata.csv": b""})

    def lines(rows: list[Any], changes: list[tuple[int, int]]) -> None:
        data = b"\n".join(row.encode(errors="surrogatepass") if isinstance(row, str) else dumped(row) for row in rows)
        (tmp_path / "j/metadata.jsonl").write_bytes(changed(data, changes))
        read_all(FolderRecords(tmp_path / "j"))

    def table(rows: list[list[str]], changes: list[tuple[int, int]], mark: bytes) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([["file_name", "text", "label"], *rows])
        (tmp_path / "c/metadata.csv").write_bytes(
            mark + changed(text.getvalue().encode(errors="surrogatepass"), changes)
        )
        read_all(FolderRecords(tmp_path / "c"))

    try_out(count, lines, st.lists(ROWS | GOOD_ROWS | VALUES | DEEP, max_size=4), CHANGES)
    marks = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"])
    try_out(count, table, st.lists(st.lists(TEXTS, max_size=5), max_size=4), CHANGES, marks)


@some(30, 2000)
def test_captions_in_text_files(tmp_path: Path, count: int) -> None:
    write_files(tmp_path, {"0.png": png()})

    def check(data: bytes) -> None:
        (tmp_path / "0.txt").write_bytes(data)
        read_all(FolderRecords(tmp_path))

    try_out(count, check, st.binary(max_size=40) | TEXTS.map(lambda text: text.encode(errors="surrogatepass")))


TURNS = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | SCALARS, "value": TEXTS | VALUES})
ENTRIES = st.fixed_dictionaries(
    {"conversations": st.lists(TURNS, max_size=4) | VALUES},
    optional={"image": st.just("0.png") | st.lists(TEXTS, max_size=2) | VALUES, "task": SCALARS, "candidates": VALUES}
    | {"answer": SCALARS},
)


@some(40, 1000)
def test_conversations(tmp_path: Path, count: int) -> None:
    write_files(tmp_path, {"0.png": png()})

    def check(entries: list[Any], changes: list[tuple[int, int]]) -> None:
        parts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        for name, text in (("t.json", f"[{','.join(parts)}]"), ("t.jsonl", "\n".join(parts))):
            (tmp_path / name).write_bytes(changed(text.encode(errors="surrogatepass"), changes))
            with suppress(FileNotFoundError):  # a folder that has none of the named images
                read_all(ConversationRecords(tmp_path / name, images=tmp_path))

    try_out(count, check, st.lists(ENTRIES | VALUES | DEEP, max_size=3), CHANGES)


@some(30, 2000)
def test_idx_headers(tmp_path: Path, count: int) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"

    @in_little_memory
    def check(magic: int, shape: list[int], payload: bytes, label_count: int) -> None:
        images.write_bytes(struct.pack(f">I{len(shape)}I", magic, *shape) + payload)
        labels.write_bytes(struct.pack(">II", 0x0801, label_count) + payload)
        read_all(IdxRecords(images, labels))
        read_all(IdxRecords(images))

    sizes = st.integers(0, 4) | st.sampled_from([2**31, 2**32 - 1, 65536, 30_000])
    magics = st.sampled_from([0x0803] * 8 + [0x0801, 0x0D03, 0x803F0000])
    try_out(count, check, magics, st.lists(sizes, min_size=2, max_size=4), st.binary(max_size=40), sizes)


# ---------------------------------------------------------------------------------------------------------------- tar
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
KINDS += [tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE]
NAMES = st.sampled_from(
    ["0.png", "0.txt", "0.cls", "0.json", "/etc/0.png", "../0.txt", "n" * 300 + ".png", "\udcff.png"]
)
PAX = st.dictionaries(
    st.sampled_from(["size", "path", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major"]), TEXTS, max_size=2
)


def number_field(value: int) -> bytes:
    """Size of 12 bytes: octal, or in base 256 where it does not fit, negative ones, too."""
    if 0 <= value < 8**11:
        return b"%011o\0" % value
    return (b"\xff" if value < 0 else b"\x80") + value.to_bytes(11, "big", signed=True)


def with_size(block: bytes, size: int) -> bytes:
    """A header with another size and the checksum that it needs."""
    new = block[:124] + number_field(size) + block[136:148] + b" " * 8 + block[156:512]
    return new[:148] + b"%06o\0 " % sum(new) + new[156:] + block[512:]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_of_negative_size_is_damage(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("0.png")
    info.type = kind
    path = tmp_path / "a.tar"
    path.write_bytes(with_size(info.tobuf(tarfile.PAX_FORMAT), -(2**60)) + bytes(1024))
    with pytest.raises((CorruptRecord, ValueError), match=r"a\.tar.*(damaged|cut off)"):
        TarRecords(str(path)).open()


@some(30, 2000)
def test_tar_headers(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.tar"
    sizes = st.none() | st.sampled_from([-512, -(2**60), 2**33, 2**62, 2**80, 1, 10**6])
    contents = st.sampled_from([png(3), b"1", b'{"t": "x"}', b"", b"99999999 size=-512\n", b"17 size=-1024\n\0"])
    members = st.lists(st.tuples(NAMES, st.sampled_from(KINDS), contents, PAX, sizes), max_size=4)

    @in_little_memory
    def check(members: list[Any], changes: list[tuple[int, int]], end: int | None) -> None:
        blocks = b""
        for name, kind, content, pax, size in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "0.png"
            info.pax_headers = {key: value for key, value in pax.items() if value.isprintable()}
            head = info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
            block = head[:-512] + (head[-512:] if size is None else with_size(head[-512:], size))
            blocks += block + content + bytes(-len(content) % 512)
        path.write_bytes(changed(blocks + bytes(1024), changes, end))
        read_all(TarRecords(str(path), caption="txt", label="cls"))
        stream = TarStream(str(path), caption="json.t")
        stream.open()
        for raw in stream.read(0, 0):
            with suppress(CorruptRecord):
                assert isinstance(raw, CorruptRecord) or stream.decode(raw)

    try_out(count, check, members, CHANGES, st.none() | st.integers(0, 99_999))


@some(40, 4000)
def test_parts_of_tar_records(count: int) -> None:
    def check(text: bytes, label: bytes, entry: Any, classes: list[str] | None) -> None:
        parts = {"png": png(), "txt": text, "cls": label, "json": dumped({"t": entry})}
        for caption, name in (("txt", "cls"), ("json.t", "json.t")):
            with suppress(CorruptRecord):
                record = TarRecords("x.tar", caption=caption, label=name, classes=classes).fields.decode("0", parts)
                assert record.caption is not None and record.label is not None
                assert classes is None or record.label < len(classes)

    data = st.binary(max_size=20) | TEXTS.map(lambda text: text.encode(errors="surrogatepass"))
    try_out(count, check, data, data, VALUES, st.none() | st.lists(TEXTS, max_size=3))


# --------------------------------------------------------------------------------------------------------------- rows
@some(40, 3000)
def test_rows_of_data_sets(count: int) -> None:
    stream = HuggingFaceStream("x", label_column="label", caption_column="text")
    talks = HuggingFaceConversations("x")

    def check(picture: Any, label: Any, text: Any, messages: Any) -> None:
        with suppress(CorruptRecord):
            record = stream.decode(("0", {"image": picture, "label": label, "text": text}))
            assert record.label is not None and record.caption is not None and record.needed_image
        with suppress(ValueError):
            assert all(isinstance(turn.text, str) for turn in talks._turns({"messages": messages}))

    pictures = st.just({"bytes": png(), "path": None}) | st.fixed_dictionaries(
        {"bytes": st.binary(), "path": st.none()}
    )
    parts = st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]) | VALUES}, optional={"text": VALUES})
    )
    messages = st.fixed_dictionaries({"role": st.just("user") | SCALARS, "content": parts | VALUES})
    try_out(count, check, pictures | SCALARS, VALUES, VALUES, st.lists(messages | VALUES, max_size=3) | VALUES)


@some(40, 4000)
def test_labels(count: int) -> None:
    def check(values: list[Any], classes: list[str] | None) -> None:
        one = ClassNumbers(classes)
        with suppress(ValueError):
            found = number_labels(values, classes=classes, where="it")
            assert set(found.bad) == {place for place, number in enumerate(found.numbers) if number is None}
            for value, number in zip(values, found.numbers, strict=True):
                with suppress(NotALabel):
                    assert classes is None or one(value) == number

    try_out(count, check, st.lists(VALUES, max_size=6), st.none() | st.lists(TEXTS, max_size=4))


@some(40, 2000)
def test_names_of_files(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.tar": b"", "b/1.tar": b"", "[v1]/x{2}.tar": b""})
    monkeypatch.chdir(tmp_path)
    pieces = st.sampled_from(
        ["a", "b", "/", "*", "**", "?", "[", "]", "{", "}", ",", "..", "1", "02", "~", ".tar", "[v1]", "x"]
    )

    def check(parts: list[str]) -> None:
        with suppress(FileNotFoundError, ValueError):
            assert all(path.is_file() for path in find_files("".join(parts), what="files"))

    try_out(count, check, st.lists(pieces | TEXTS.filter(lambda text: "/etc" not in text), max_size=8))


@some(40, 3000)
def test_pictures(count: int) -> None:
    files = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.effect_noise((16, 16), 50).convert("RGB").save(buffer, kind)
        files.append(buffer.getvalue())

    def check(data: bytes, changes: list[tuple[int, int]], end: int | None) -> None:
        with suppress(CorruptRecord):
            assert decode_image(changed(data, changes, end), max_pixels=10_000).size

    places = st.tuples(st.integers(0, 80), st.integers(0, 255))
    try_out(count, check, st.sampled_from(files), st.lists(places, max_size=4), st.none() | st.integers(0, 999))
