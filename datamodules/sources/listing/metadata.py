"""Tables of images, ``metadata.csv`` or ``metadata.jsonl``: a row that cannot be used spoils no other."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsight.common.text import BadText, parse_json, read_lines, read_text

FILE_NAME = "file_name"
_OTHER_TABLES = ("metadata.json", "metadata.ndjson", "metadata.parquet", "metadata.tsv")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        line: Number of its line in the file, from 1.
        values: What its columns hold.
        bad: Why it cannot be used; empty if it can.
    """

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    bad: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: It is not UTF-8 from the beginning, its quotes do not match (then no row is sure), its columns
            cannot be told apart, or none is named ``file_name``; the message names the file.
    """
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    columns = columns_of(rows)
    if columns and find_column(columns, FILE_NAME, path=path) is None:
        raise ValueError(
            f"{path} has no column 'file_name'; it has {sorted(columns)}: name the pictures there, and separate the "
            "columns of a .csv by commas"
        )
    return rows


def find_column(columns: Iterable[str], wanted: str, *, path: Path) -> str | None:
    """The column of a name, in whatever capitals and with whatever spaces it is written; ``None`` if there is none.

    Raises:
        ValueError: There are several.
    """
    found = sorted(column for column in columns if _plain(column) == wanted)
    if len(found) > 1:
        raise ValueError(f"{path} has the columns {found}, of which one alone can be {wanted!r}: rename the others")
    return found[0] if found else None


def find_metadata(root: Path) -> Path | None:
    """The table of a folder, if it has one.

    Raises:
        ValueError: It has two, or one of another name or form.
    """
    names = [entry.name for entry in os.scandir(root) if entry.name.casefold() in METADATA_NAMES and entry.is_file()]
    if len(names) > 1:
        raise ValueError(f"{root} holds both {' and '.join(sorted(names))}; keep one of them")
    if names and names[0] not in METADATA_NAMES:
        raise ValueError(f"{root} holds {names[0]}, which is not read: name it {names[0].casefold()}")
    other = next((name for name in _OTHER_TABLES if (root / name).is_file()), None)
    if other is not None and not names:
        raise ValueError(f"{root} holds {other}, which is not read: write it as {' or '.join(METADATA_NAMES)}")
    return root / names[0] if names else None


def _plain(column: str) -> str:
    return column.strip().strip("\ufeff").strip().casefold()


def columns_of(rows: Sequence[Row]) -> set[str]:
    """Names of all columns."""
    return {name for row in rows for name in row.values}


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        try:
            row = parse_json(line)
        except BadText as error:
            yield Row(number, bad=str(error))
            continue
        yield Row(number, row) if isinstance(row, dict) else Row(number, bad="no JSON object; write one object a line")


def _csv_rows(path: Path) -> Iterator[Row]:
    text = read_text(path)
    before = csv.field_size_limit(max(len(text), 1))  # the usual limit of 128 kB is an error without a name
    try:
        reader = csv.reader(io.StringIO(text), strict=True)
        header = [name.strip() for name in next((fields for fields in reader if fields), [])]
        if len(set(header)) < len(header):
            raise ValueError(f"{path} names a column twice: {header}; give each a name of its own")
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                yield _csv_row(line, header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as a table from line {reader.line_num} or before ({error}): close every quote, and "
            "write a quote inside a quoted text twice"
        ) from error
    finally:
        csv.field_size_limit(before)


def _csv_row(line: int, header: Sequence[str], fields: Sequence[str]) -> Row:
    bad = ""
    if len(fields) > len(header):
        bad = f"{len(fields)} fields for {len(header)} columns; put quotes around a text that holds commas"
    return Row(line, dict(zip(header, fields, strict=False)), bad)
