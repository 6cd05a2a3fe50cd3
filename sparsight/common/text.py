"""The one reader of text: UTF-8 with or without a byte order mark, and nothing in it that no model should read."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20  # of one caption's file
# control characters but for tabs, line and page ends; halves of characters outside the basic plane
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_NOT_UTF8 = range(0xDC80, 0xDD00)  # how Python keeps a byte that is not UTF-8
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_MARK = "\ufeff"


class BadText(ValueError):
    """A text that cannot be used; the others of its file can."""


def check_text(text: str) -> None:
    """Refuse a text with bytes that are not UTF-8, halves of characters (cut emoji), or control characters.

    Raises:
        BadText: It has one of these; the message shows the first and what stands around it.
    """
    found = _NO_TEXT.search(text)
    if found is None:
        return
    code, place = ord(found[0]), found.start()
    near = ascii(text[max(0, place - 20) : place + 20])
    if code in _NOT_UTF8:
        raise BadText(f"byte {code - 0xDC00:#04x} in {near} is not UTF-8: save the file as UTF-8")
    kind = "half a character" if code >= 0xD800 else "a control character"
    raise BadText(f"{near} holds {kind} (U+{code:04X}): take it out")


def clean_text(value: object, *, what: str) -> str:
    """A text of a record, without byte order mark and without white space around it.

    Args:
        value: What stands in the record.
        what: Its field, for messages.

    Raises:
        BadText: It is a number, list, object or nothing at all, or holds what ``check_text`` refuses.
    """
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"a {type(value).__name__} ({str(value)[:40]})"
        raise BadText(f"{what} holds {kind}, not a text")
    try:
        check_text(value)
    except BadText as error:
        raise BadText(f"{what}: {error}") from error
    return value.strip().removeprefix(_MARK).strip()


def parse_json(text: str) -> Any:
    """The value of a JSON text; all that can go wrong has one type.

    Raises:
        BadText: It is no JSON, nested too deeply, names a field twice, or holds a number that is none (``NaN``) or too
            long.
    """
    try:
        return json.loads(text.removeprefix(_MARK), parse_constant=_refuse_constant, object_pairs_hook=each_once)
    except BadText:
        raise
    except RecursionError as error:
        raise BadText("not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:  # of the parser, or of a number with thousands of digits
        raise BadText(f"not JSON: {error}") from error


def each_once(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object, for ``json.loads``, which by itself would keep the last of one name.

    Raises:
        BadText: Two have one name.
    """
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadText(f"field {twice[:80]!r} is there twice: keep one of them")
    return found


def read_json(path: Path) -> Any:
    """The value of a JSON file whose parts stand or fall together.

    Raises:
        BadText: It is not UTF-8 or no JSON, nested too deeply, or holds a number too long; the message names the file.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except RecursionError as error:
        raise BadText(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise BadText(f"{path} is not JSON: {error}") from error


def read_options(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects in the configurations of a model's folder, or of a part of it, by file name; empty if there is none.

    Raises:
        BadText: A file is no JSON, or holds something else than an object; the message names it.
    """
    found = {}
    for path in sorted(path for pattern in ("config.json", "*_config.json") for path in folder.glob(pattern)):
        found[path.name] = read_json(path)
        if not isinstance(found[path.name], dict):
            raise BadText(f"{path} is damaged: it holds a {type(found[path.name]).__name__}, not an object of options")
    return found


def decode_text(data: bytes) -> str:
    """Text of a file's bytes; those that are not UTF-8 are kept so that ``check_text`` finds them.

    Raises:
        BadText: It is UTF-16 or UTF-32.
    """
    if data.startswith(_OTHER_MARKS) or b"\0" in data[:2]:
        raise BadText("not UTF-8 but UTF-16 or UTF-32, or no text at all: save it as UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_text(path: Path) -> str:
    """Text of a whole file, of which single records may be bad: see ``decode_text``. All ends of lines become one.

    Raises:
        BadText: It is UTF-16 or UTF-32; the message names the file.
    """
    try:
        return decode_text(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    except BadText as error:
        raise BadText(f"{path} is {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1.

    Raises:
        BadText: It is UTF-16 or UTF-32; the message names the file.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip().strip(_MARK):
            yield number, line.removeprefix(_MARK)


def read_caption(path: Path) -> str:
    """The caption that a text file holds.

    Raises:
        BadText: The file cannot be read, is longer than 1 MB, or holds no text; the message names it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadText(f"of more than {MAX_BYTES} bytes is no caption")
        return clean_text(decode_text(data), what="it")
    except (OSError, BadText) as error:
        raise BadText(f"caption {path.name}: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
