"""Tables of the region study from its rows, of whatever was run.

    python -m benchmarks.region_report                                     # Markdown, on standard output

Scores are means over tasks; intervals are a paired bootstrap over items and seeds. "Kept" is the share of the score
above chance of tuning all layers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.region_arms import ARMS, UNTUNED
from benchmarks.region_choice import REFERENCE, sweep_key
from benchmarks.region_data import CHANCE
from benchmarks.region_orders import DRAWN
from benchmarks.region_removal import NONE
from benchmarks.region_rows import FOLDER, Row, Rows, above_chance, accuracy
from sparsight.common.bootstrap import Interval, compare
from sparsight.common.tables import markdown_table

RESAMPLES = 4000
TEXT = "text_"  # how tasks without images begin
Pairs = Sequence[tuple[Row, Row]]


def main() -> None:
    """Print the tables of what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=FOLDER, help="folder of rows")
    print("\n\n".join(tables(Rows(parser.parse_args().rows))))


def tables(rows: Rows) -> list[str]:
    """What was decided, rates, arms and removals, each where there are rows of it.

    Raises:
        SystemExit: There are no rows.
    """
    decided = rows.folder / "tasks.json"
    found = [task_lines(decided)] if decided.is_file() else []
    found += [rate_lines(rows.read("rates")), arm_lines(rows.read("arms")), removal_lines(rows.read("removed"))]
    found = [lines for lines in found if lines]
    if not found:
        raise SystemExit(f"{rows.folder} holds no rows: run benchmarks.region_study first")
    return [markdown_table(lines) for lines in found]


def task_lines(file: Path) -> list[dict[str, str]]:
    """Which tasks count, and why."""
    return [
        {
            "task": name,
            "items": str(each["items"]),
            "chance": f"{each['chance']:.0%}",
            "all layers (95 % interval)": f"{each['accuracy']:.1%} ({each['low']:.1%} to {each['high']:.1%})",
            "counts": "yes" if each["counts"] else "no",
        }
        for name, each in json.loads(file.read_text(encoding="utf-8"))["tasks"].items()
    ]


def rate_lines(rows: dict[str, Row]) -> list[dict[str, str]]:
    """Every arm with every rate: the mean share of the way from chance to all right, and accuracies."""
    lines = []
    keys = [(UNTUNED, "", UNTUNED)] if UNTUNED in rows else []
    for arm in ARMS:
        rates = sorted(row["rate"] for row in rows.values() if row["arm"] == arm)
        keys += [(arm, f"{rate:g}", sweep_key(arm, rate)) for rate in rates]
    for arm, rate, key in keys:
        right = rows[key]["right"]["rates"]
        shares = {task: f"{accuracy(right[task]):.0%}" for task in CHANCE if task in right}
        lines.append({"arm": arm, "rate": rate, "above chance": f"{above_chance(right, CHANCE, shares):.1%}"} | shares)
    return lines


def arm_lines(rows: dict[str, Row]) -> list[dict[str, str]]:
    """Every arm at its rate: score, text, and what it has of the score of all layers."""
    of = {arm: [row for row in rows.values() if row["arm"] == arm] for arm in (UNTUNED, *ARMS)}
    lines = []
    for arm, own in of.items():
        if not own:
            continue
        tasks = visual(own[0], "arms")
        both = [(a, b) for a in own for b in of[REFERENCE] if a["seed"] in (b["seed"], None)]
        rate, seeds = ("", "") if arm == UNTUNED else (f"{own[0]['rate']:g}", str(len(own)))
        line = {"arm": arm, "rate": rate, "seeds": seeds}
        line |= {"seen": ranged([score(row, "arms", tasks) for row in own])}
        line |= {
            "text": ranged([score(row, "arms", [t for t in row["right"]["arms"] if t not in tasks]) for row in own])
        }
        line["seen, less all layers (95 % interval)"] = difference(both, "arms", tasks) if arm != REFERENCE else ""
        line["kept above chance (95 % interval)"] = kept(both, "arms", tasks) if arm != REFERENCE else ""
        lines.append(line | {task: ranged([score(row, "arms", [task]) for row in own]) for task in tasks})
    return lines


def removal_lines(rows: dict[str, Row]) -> list[dict[str, str]]:
    """Score without layers, by model, criterion and healing; drawn orders are put together."""
    groups: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows.values():
        criterion = DRAWN if row["criterion"].startswith(DRAWN) else row["criterion"]
        values = groups.setdefault((row["arm"], row["healing"], criterion if row["removed"] else "any"), {})
        found = row["right"]
        values.setdefault(row["removed"], []).append(float(np.mean([accuracy(each) for each in found.values()])))
    counts = sorted({count for values in groups.values() for count in values})
    return [
        {"model": arm, "healing": "" if healing == NONE else healing, "criterion": criterion}
        | {f"without {count}": ranged(values.get(count, [])) for count in counts}
        for (arm, healing, criterion), values in sorted(groups.items())
    ]


def visual(row: Row, split: str) -> list[str]:
    """Tasks with images that a row answers."""
    return [task for task in row["right"][split] if not task.startswith(TEXT)]


def score(row: Row, split: str, tasks: Iterable[str]) -> float:
    """Mean over tasks of the accuracy."""
    return float(np.mean([accuracy(row["right"][split][task]) for task in tasks]))


def resampled(both: Pairs, split: str, tasks: Sequence[str]) -> np.ndarray:
    """Scores of two arms in bootstrap resamples, (2, R): items of each task, and seeds, are drawn for both alike."""
    right = {
        task: np.array([[[*map(int, row["right"][split][task])] for row in pair] for pair in both], dtype=float)
        for task in tasks
    }  # (seeds, 2, items)
    rng = np.random.default_rng(0)
    scores_2R = np.empty((2, RESAMPLES))
    for number in range(RESAMPLES):
        seeds = rng.integers(len(both), size=len(both))
        means = []
        for each in right.values():
            items = rng.integers(each.shape[2], size=each.shape[2])
            means.append(each[seeds][:, :, items].mean((0, 2)))
        scores_2R[:, number] = np.mean(means, 0)
    return scores_2R


def difference(both: Pairs, split: str, tasks: Sequence[str]) -> str:
    """Score of one arm less that of another, in percentage points, with its interval; nothing without pairs."""
    if not both:
        return ""
    mean = 100 * np.mean([score(a, split, tasks) - score(b, split, tasks) for a, b in both])
    low, high = compare(*(100 * resampled(both, split, tasks))).difference
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def kept(both: Pairs, split: str, tasks: Sequence[str]) -> str:
    """What one arm has of another's score above chance, with its interval; nothing without pairs."""
    if not both:
        return ""
    floor = float(np.mean([CHANCE[task] for task in tasks]))
    ours, theirs = (np.mean([score(row, split, tasks) for row in arm]) for arm in zip(*both, strict=True))
    span: Interval | None = compare(*(resampled(both, split, tasks) - floor)).ratio
    told = "" if span is None else f" ({span.low:.1%} to {span.high:.1%})"
    return f"{(ours - floor) / (theirs - floor):.1%}{told}"


def ranged(values: Sequence[float]) -> str:
    """Mean, and smallest to largest where there are several."""
    if not values:
        return ""
    mean = f"{np.mean(values):.1%}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1%} to {max(values):.1%})"


if __name__ == "__main__":
    main()
