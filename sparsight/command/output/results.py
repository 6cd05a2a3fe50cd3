"""What ``validate`` and ``test`` found, as tables that fit a terminal of 80 columns."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsight.common.tables import measured

_EDGE = 3  # characters between two columns
_NARROWEST = 8  # characters of a column of values


def print_results(results: Sequence[Mapping[str, Any]], stage: str, console: Console | None = None) -> None:
    """Print metrics; those of several tasks or sites as a table of their own.

    Args:
        results: By data loader, metrics by name, such as ``val/loss`` and ``val/accuracy/likelihood/vsr``.
        stage: ``validate`` or ``test``, which the names of metrics tell as well.
        console: Where to; standard output if not given.
    """
    metrics: dict[str, float] = {}
    for number, result in enumerate(results):
        for name, value in result.items():
            name = name.partition("/dataloader_idx_")[0]
            metrics[f"{name}, loader {number}" if name in metrics else name] = float(value)
    console = console or Console()
    for table in _tables(metrics, console.width):
        console.print(table)


def _tables(metrics: Mapping[str, float], width: int) -> Iterator[Table]:
    """First the metrics that stand alone, then those of which there are several that differ in the last part."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in sorted(metrics.items()):
        group, _, member = name.rpartition("/")
        groups[group][member] = value
    groups = {name: members for name, members in groups.items() if "/" in name and len(members) > 1}
    alone = {name: value for name, value in metrics.items() if name.rpartition("/")[0] not in groups}
    if alone:
        yield _table("metric", ["value"], {name: [value] for name, value in sorted(alone.items())})
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, members in groups.items():
        alike[(name.partition("/")[0], *members)].append(name)
    for (_, *tasks), names in alike.items():
        heading = os.path.commonpath(names) if len(names) > 1 else names[0]
        heads = {name[len(heading) :].strip("/") or "value": groups[name] for name in names}
        parts = _parts(heading, list(heads), tasks, width)
        if len(parts) > 1 and len(turned := _parts(heading, tasks, list(heads), width)) == 1:
            heads, tasks, parts = {t: {h: heads[h][t] for h in heads} for t in tasks}, list(heads), turned
        for part, columns in enumerate(parts, start=1):
            rows = {task: [heads[head][task] for head in columns] for task in tasks}
            yield _table(heading if part == 1 else f"{heading}, part {part}", columns, rows)


def _parts(heading: str, columns: Sequence[str], rows: Sequence[str], width: int) -> list[list[str]]:
    """Columns of the tables that are needed for all of them."""
    return _packed(columns, width - max(map(len, [heading, *rows])) - 2 * _EDGE)


def _packed(heads: Sequence[str], room: int) -> list[list[str]]:
    """Columns that stand beside each other in that many characters; one at least."""
    packed: list[list[str]] = []
    left = 0
    for head in heads:
        needed = max(len(head), _NARROWEST) + _EDGE
        if not packed or needed > left:
            packed.append([])
            left = room
        packed[-1].append(head)
        left -= needed
    return packed


def _table(heading: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> Table:
    table = Table()
    table.add_column(heading, overflow="fold", ratio=1)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold", min_width=_NARROWEST)
    for name, values in rows.items():
        table.add_row(name, *map(measured, values))
    return table
