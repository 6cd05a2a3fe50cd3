"""Rows of the region study: what its runs found, small and committed, from which the driver goes on.

A row is a line of a JSONL file: a key that says what was run, facts of the run, and which items were right, a string of
0 and 1 for each task in the order of its source. Runs of another machine or session are known by their rows alone.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsight.evaluation.questions.task_scores import TaskScores

Row = dict[str, Any]
FOLDER = Path(__file__).parent / "visual_region"  # committed


class Rows:
    """The rows of a folder.

    Args:
        folder: Where ``<step>.jsonl`` files are.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def read(self, step: str) -> dict[str, Row]:
        """Rows of a step by their keys, the last of each; a line that was broken off at the end is no row.

        Raises:
            SystemExit: Another line is damaged.
        """
        file = self.folder / f"{step}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        found: dict[str, Row] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                found[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise SystemExit(f"{file} line {number} is no row ({error}): take it out or restore it") from error
        return found

    def add(self, step: str, key: str, **facts: Any) -> Row:
        """Append a row; one write, so that two runs may add to a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{step}.jsonl"
        row = {"key": key, **facts, **circumstances()}
        broken = file.is_file() and not file.read_bytes().endswith(b"\n")  # a run was killed as it wrote
        if broken:
            whole = file.read_bytes().rpartition(b"\n")
            file.write_bytes(whole[0] + whole[1])
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, separators=(",", ":")) + "\n")
        return row


class Budget:
    """How long a session may go on.

    Args:
        minutes: From now on; without end if not given.
    """

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.longest: dict[str, float] = {}

    def allows(self, kind: str, *, guess: float) -> bool:
        """Whether a run of a kind still fits, by the longest so far or a guess, in seconds."""
        return self.end is None or time.monotonic() + self.longest.get(kind, guess) <= self.end

    def note(self, kind: str, seconds: float) -> None:
        """Remember how long a run of a kind took."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))


def circumstances() -> Row:
    """When and with what a row was made."""
    return {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def outcomes(scores: TaskScores) -> dict[str, str]:
    """Which items were right by likelihood: for each task a string of 0 and 1 in the order of its source."""
    found: dict[str, list[str]] = {}
    for index in sorted(scores.items):
        item = scores.items[index]
        found.setdefault(item.task, []).append(str(int(item.likeliest == item.answer)))
    return {task: "".join(each) for task, each in found.items()}


def accuracy(right: str) -> float:
    """Share of ones."""
    return right.count("1") / len(right)


def above_chance(right: Mapping[str, str], chance: Mapping[str, float], tasks: Iterable[str]) -> float:
    """Mean over tasks of the accuracy, as a share of the way from chance to all right."""
    shares = [(accuracy(right[task]) - chance[task]) / (1 - chance[task]) for task in tasks]
    return sum(shares) / len(shares)
