"""Entries of a large JSON file, of which only the places are kept: images inside it make gigabytes of it."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsight.common.text import BadText, parse_json

_DECODER = json.JSONDecoder(parse_int=str)  # it finds ends alone: a number too long to convert spoils its own entry
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonEntries:
    """The list at ``path`` inside a JSON file, each entry parsed when it is asked for.

    Args:
        file: The file.
        path: Names on the way to the list, with dots between; a file that is a list has none, whatever this says.

    Attributes:
        header: All other members of the objects on the way.
        sha256: Hash of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, or holds no list there.
    """

    def __init__(self, file: Path, path: str) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        self.file = file
        self.header: dict[str, Any] = {}
        content = file.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._places: list[tuple[int, int]] = []
        # one character a byte, whatever the language, so that places in the text are places in the file
        text = content.decode("latin-1")
        start = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
        del content
        try:
            end = _skip(text, self._scan(text, _skip(text, start), path.split(".") if path else []))
            if end < len(text):
                raise json.JSONDecodeError("there is more behind its end", text, end)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON: {error.msg}, byte {error.pos}") from error
        except BadText as error:
            raise ValueError(f"{file} holds what is {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{file} is nested too deeply to be read") from error

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Parse one entry.

        Raises:
            ValueError: It is no object, no UTF-8, or holds a number that is none.
        """
        start, end = self._places[index]
        with self.file.open("rb") as stream:
            stream.seek(start)
            entry = parse_json(stream.read(end - start).decode())
        if not isinstance(entry, dict):
            raise ValueError("not a JSON object")
        return entry

    def _scan(self, text: str, at: int, path: list[str]) -> int:
        """Note the places of the list's entries and the header; returns where the value at ``at`` ends."""
        if text.startswith("[", at):
            return _parts(text, at, "]", self._note_entry)
        if not path or not text.startswith("{", at):
            raise ValueError(f"{self.file} holds no list of entries" + (f" in `{path[0]}`" if path else ""))
        met = False

        def member(text: str, at: int) -> int:
            nonlocal met
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                raise json.JSONDecodeError("a name and a colon are expected", text, at)
            at = _skip(text, at + 1)
            if name == path[0]:
                met = True
                return self._scan(text, at, path[1:])
            _, end = _DECODER.raw_decode(text, at)
            self.header[name] = parse_json(text[at:end].encode("latin-1").decode())
            return end

        end = _parts(text, at, "}", member)
        if not met:
            raise ValueError(f"{self.file} has no `{path[0]}`; it has {', '.join(self.header) or 'nothing'}")
        return end

    def _note_entry(self, text: str, at: int) -> int:
        _, end = _DECODER.raw_decode(text, at)
        self._places.append((at, end))
        return end


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None  # it also matches nothing
    return space.end()


def _parts(text: str, at: int, close: str, part: Callable[[str, int], int]) -> int:
    """Go through the comma-separated parts of a list or object that begins at ``at``; returns where it ends."""
    at = _skip(text, at + 1)
    while not text.startswith(close, at):
        at = _skip(text, part(text, at))
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith(close, at):
            raise json.JSONDecodeError(f"',' or '{close}' is expected", text, at)
    return at + 1
