"""A file of finished work, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsight.common.files import write_text


class Journal:
    """Results by key, on disk as soon as they are there.

    A line that was cut off when the run was killed is dropped, and its work is done again.

    Args:
        path: JSON lines; made if missing. The first line is ``about``.
        about: Plain data on what all results depend on; its ``date`` may differ between runs.

    Raises:
        ValueError: The file holds results that depend on something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        lines = _whole_lines(path) if path.exists() else []
        self.about: dict[str, Any] = json.loads(lines[0]) if lines else json.loads(json.dumps(about))
        _refuse_other(path, self.about, about)
        self.results = _results(lines)
        write_text(path, "".join(f"{line}\n" for line in lines or [json.dumps(self.about)]))

    def add(self, key: str, result: Any) -> None:
        """Keep a result."""
        self.results[key] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")


def check_about(path: Path, about: Mapping[str, Any]) -> None:
    """See that a journal's results depend on the same as ours would.

    Raises:
        ValueError: They depend on something else.
    """
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    if line.endswith("\n"):
        _refuse_other(path, json.loads(line), about)


def read_results(path: Path) -> dict[str, Any]:
    """Results of a journal that another process may be writing."""
    return _results(_whole_lines(path))


def _refuse_other(path: Path, begun: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(about))
    for name in sorted({*now, *begun} - {"date"}):
        if now.get(name) != begun.get(name):
            where, before, after = _first_difference(name, begun.get(name), now.get(name))
            raise ValueError(
                f"{path} was begun with {where} {before!r}, now it is {after!r}: "
                "results would not compare; choose another folder or delete the file"
            )


def _first_difference(where: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """Path of the first value that differs, such as ``model.hash``, and both values."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for name in before:
            if before[name] != after[name]:
                return _first_difference(f"{where}.{name}", before[name], after[name])
    return where, before, after


def _whole_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _results(lines: list[str]) -> dict[str, Any]:
    entries = map(json.loads, lines[1:])
    return {entry["key"]: entry["result"] for entry in entries}
