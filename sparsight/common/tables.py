"""Tables as text, CSV and JSON; files appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80  # characters of a line in a terminal
GAP = "  "  # between columns
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_table(rows: Sequence[Mapping[str, object]], *, width: int | None = None, keep: int = 1) -> str:
    """Rows of equal keys as aligned columns under a ruled header; numbers to the right, text to the left.

    Args:
        rows: By column.
        width: Most characters of a line. Columns for which there is no room follow in tables below, behind the first.
        keep: How many the first ones are, which tell what a row is about.
    """
    return "\n\n".join(
        _aligned([{name: row[name] for name in names} for row in rows]) for names in _parts(rows, width, keep)
    )


def _parts(rows: Sequence[Mapping[str, object]], width: int | None, keep: int) -> list[list[str]]:
    """Columns of each of the tables."""
    names = list(rows[0])
    wide = {name: max(len(name), *(len(str(row[name])) for row in rows)) + len(GAP) for name in names}
    first = names[:keep]
    parts = [list(first)]
    for name in names[keep:]:
        if (
            width is not None
            and len(parts[-1]) > keep
            and sum(wide[each] for each in (*parts[-1], name)) - len(GAP) > width
        ):
            parts.append(list(first))
        parts[-1].append(name)
    return parts


def _aligned(rows: Sequence[Mapping[str, object]]) -> str:
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    text = [isinstance(value, str) and not value[:1].isdigit() for value in rows[0].values()]
    lines = [
        GAP.join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, text, strict=True)
        )
        for line in cells
    ]
    lines.insert(1, GAP.join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as a Markdown table."""
    cells = [[str(value).replace("|", "/") for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(rows[0]), ["---"] * len(rows[0]), *cells])


def short(number: float) -> str:
    """Three significant digits and a decimal prefix: 24826900000 is ``24.8 G``."""
    for factor, unit in UNITS:
        if abs(number) >= factor:
            return f"{_three_digits(number / factor)} {unit}"
    return _three_digits(number)


def _three_digits(number: float) -> str:
    decimals = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:.{decimals}f}" if number != int(number) else str(int(number))


def measured(value: float) -> str:
    """A measured value in three digits: 0.123, 1.35 k, 3.2e-05."""
    return short(value) if abs(value) >= 999.5 else f"{value:.3g}"


def whole(value: float) -> str:
    """A number in three digits and without an exponent or a unit before it: 0.123, 71.4, 2,713."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as CSV with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def json_text(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2) + "\n"
