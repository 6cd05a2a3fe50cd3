"""What the region study decides from rows, by rules that were written before any run.

1. The learning rate of an arm is that of its three which has the highest mean accuracy above chance on the items of
   the split ``rates``, first seed: of the arm that tunes all layers on all tasks, of the others on those that count.
2. A task counts if the arm that tunes all layers, at its rate, is above chance on the items of the split ``tasks``: the
   lower end of the 95 % Wilson interval of its accuracy lies above one by the number of candidates.

The outcome of the second is a file, ``tasks.json``, that is committed before any other arm is run; no arm is ever
scored on the items of either split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.region_data import CHANCE
from benchmarks.region_rows import Row, Rows, above_chance
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text

Z = 1.959964  # of 95 %
FIRST_SEED = 0  # learning rates are chosen with it
REFERENCE = "all"


def sweep_key(arm: str, rate: float) -> str:
    """The key of the row that an arm's rate is judged by."""
    return f"{arm} {rate:g}"


def wilson(right: str) -> tuple[float, float]:
    """95 % interval of a share, of a string of 0 and 1 (Wilson 1927)."""
    n, share = len(right), right.count("1") / len(right)
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)


def counting_tasks(right: Mapping[str, str], chance: Mapping[str, float] = CHANCE) -> dict[str, dict[str, Any]]:
    """The second rule: of every task its accuracy, interval, chance and whether it counts."""
    found = {}
    for task, floor in chance.items():
        low, high = wilson(right[task])
        share = right[task].count("1") / len(right[task])
        found[task] = {
            "items": len(right[task]),
            "chance": floor,
            "accuracy": share,
            "low": low,
            "high": high,
            "counts": low > floor,
        }
    return found


def best_rate(rows: Mapping[str, Row], arm: str, rates: tuple[float, ...], tasks: list[str]) -> float | None:
    """The first rule; none while a rate of the arm was not run."""
    keys = {rate: sweep_key(arm, rate) for rate in rates}
    if not all(key in rows for key in keys.values()):
        return None
    return max(rates, key=lambda rate: above_chance(rows[keys[rate]]["right"]["rates"], CHANCE, tasks))


def decide_tasks(rows: Rows, rates: tuple[float, ...]) -> Path | None:
    """Write ``tasks.json`` once all rates of the reference were run; one that is there stays as it is."""
    file = rows.folder / "tasks.json"
    swept = rows.read("rates")
    rate = best_rate(swept, REFERENCE, rates, list(CHANCE))
    if file.is_file() or rate is None:
        return file if file.is_file() else None
    found = counting_tasks(swept[sweep_key(REFERENCE, rate)]["right"]["tasks"])
    write_text(file, json_text({"arm": REFERENCE, "rate": rate, "seed": FIRST_SEED, "tasks": found}))
    return file


def read_tasks(rows: Rows) -> list[str]:
    """The tasks that count.

    Raises:
        SystemExit: That is not decided, or none does.
    """
    file = rows.folder / "tasks.json"
    if not file.is_file():
        raise SystemExit(f"{file} is not there: run `--only rates tasks --arms {REFERENCE}` first, and commit it")
    tasks = [name for name, each in json.loads(file.read_text(encoding="utf-8"))["tasks"].items() if each["counts"]]
    if not tasks:
        raise SystemExit(f"by {file} no task counts: nothing can be compared")
    return tasks
