"""Tables and plots of benchmarks.visual_region_study, from the records that its runs have left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sparsight.common.bootstrap import Interval, compare
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text, markdown_table
from sparsight.evaluation.questions.task_scores import Item, TaskScores

REFERENCE = "all"
UNTUNED = "untuned"  # what all arms start from
KINDS = ("visual", "text")
RESAMPLES = 4000
PRUNED = ("uniform", "all")
DEPTH = 30
COLUMNS = (
    "arm",
    "layers",
    "seeds",
    "visual",
    "text",
    "visual kept (95 % interval)",
    "kept above chance (95 % interval)",
    "processor time of a step",
    "peak memory (GiB)",
)
Record = dict[str, Any]


def write_report(root: Path, output: Path, *, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Write ``tables.md``, ``study.json`` and plots of whatever is finished."""
    found = {arm: read(root, arm, seeds) for arm in arms}
    found = {arm: records for arm, records in found.items() if records}
    if not found:
        raise SystemExit(f"no run is finished in {root}: nothing to report")
    output.mkdir(parents=True, exist_ok=True)
    parts = [markdown_table([arm_line(arm, records, found.get(REFERENCE, [])) for arm, records in found.items()])]
    if untuned := found.get(UNTUNED):
        parts.append(markdown_table([gain_line(arm, found[arm], untuned) for arm in found if arm != UNTUNED]))
    parts.append(markdown_table([task_line(arm, records) for arm, records in found.items()]))
    pruned = read_pruned(root, seeds)
    if pruned:
        parts.append(markdown_table(pruning_lines(pruned)))
        plot_pruning(pruned, output / "pruning.png")
    plot_arms(found, output / "arms.png")
    write_text(output / "tables.md", "\n\n".join(parts) + "\n")
    without_items = {
        arm: [record | {"scores": record["scores"]["accuracies"]} for record in records]
        for arm, records in found.items()
    }
    facts = {"environment": environment(torch.device("cpu")), "arms": without_items, "pruned": summary(pruned)}
    write_text(output / "study.json", json_text(facts))
    print("\n\n".join(parts))


def read(root: Path, arm: str, seeds: Sequence[int], run: str = "") -> list[Record]:
    """Records of an arm's finished seeds, in their order."""
    paths = [root / arm / f"seed{seed}" / run / "record.json" for seed in seeds]
    return [read_record(path) for path in paths if path.is_file()]


def read_record(path: Path) -> Record:
    """What a finished run has left.

    Raises:
        SystemExit: The file is damaged; the message names it and the remedy.
    """
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path} is damaged ({error}): remove it, and the driver judges that run again") from error
    return record


def read_pruned(root: Path, seeds: Sequence[int]) -> dict[tuple[str, bool, int], list[Record]]:
    """Records of pruned runs by arm, healed or not, and number of removed layers; tuning's own where none left."""
    found = {}
    for arm in PRUNED:
        if records := read(root, arm, seeds):
            found[arm, False, 0] = records
        for path in root.glob(f"{arm}/seed*/without*"):
            name, healed = path.name.removeprefix("without"), path.name.endswith("_healed")
            key = (arm, healed, int(name.removesuffix("_healed")))
            if records := read(root, arm, seeds, path.name):
                found[key] = records
    return on_shared_items(dict(sorted(found.items())))


def on_shared_items(found: dict[tuple[str, bool, int], list[Record]]) -> dict[tuple[str, bool, int], list[Record]]:
    """The records with only what all of them answered: of models without layers a share of the items is asked."""
    of_runs = [{item["index"] for item in record["scores"]["items"]} for runs in found.values() for record in runs]
    shared = set.intersection(*of_runs) if of_runs else set()
    return {key: [only(record, shared) for record in records] for key, records in found.items()}


def only(record: Record, indices: set[int]) -> Record:
    """A record of these items alone."""
    scores = TaskScores()
    scores.add(Item(**item) for item in record["scores"]["items"] if item["index"] in indices)
    items = [asdict(item) for item in scores.items.values()]
    return record | {"scores": {"accuracies": scores.accuracies(), "items": items}}


def arm_line(arm: str, records: Sequence[Record], reference: Sequence[Record]) -> dict[str, str]:
    """A row of the main table; ranges are over seeds, the interval is the paired bootstrap's."""
    visual, text = ([score(r, kind) for r in records] for kind in KINDS)
    line = {
        "arm": arm,
        "layers": described_layers([record["layers"] for record in records]),
        "seeds": str(len(records)),
        "visual": ranged(visual),
        "text": ranged(text),
    }
    both = pairs(records, reference)
    if both and arm != REFERENCE:
        line["visual kept (95 % interval)"] = kept(both)
        line["kept above chance (95 % interval)"] = kept(both, floor=chance(records[0], "visual"))
    seconds, of_all = measured(records, "step_seconds"), measured(reference, "step_seconds")
    if seconds and of_all:
        line["processor time of a step"] = ranged([each / float(np.mean(of_all)) for each in seconds], "{:.2f}")
    if memory := measured(records, "peak_memory_mib"):
        line["peak memory (GiB)"] = ranged([mib / 1024 for mib in memory], "{:.1f}")
    return {key: line.get(key, "") for key in COLUMNS}


def gain_line(arm: str, records: Sequence[Record], untuned: Sequence[Record]) -> dict[str, str]:
    """A row of the table of what tuning changed, in percentage points."""
    both = pairs(records, untuned)
    return {"arm": arm} | {f"{kind}, points above {UNTUNED} (95 % interval)": difference(both, kind) for kind in KINDS}


def kept(both: Sequence[tuple[Record, Record]], floor: float = 0.0) -> str:
    """What one arm has of another's visual score above a floor, with the paired bootstrap's interval."""
    ours, theirs = (np.mean([score(record, "visual") for record in arm]) for arm in zip(*both, strict=True))
    span = compare(*(scores - floor for scores in resampled_scores(both))).ratio
    return f"{(ours - floor) / (theirs - floor):.1%} {spanned(span)}".rstrip()


def chance(record: Record, kind: str) -> float:
    """Visual or text score of guessing: the mean over tasks of one by the number of candidates."""
    by_task: dict[str, list[float]] = {}
    for item in record["scores"]["items"]:
        if item["visual"] == (kind == "visual"):
            by_task.setdefault(item["task"], []).append(1 / item["candidates"])
    return float(np.mean([np.mean(shares) for shares in by_task.values()]))


def measured(records: Sequence[Record], key: str) -> list[float]:
    """Of the runs that measured it: not those that were broken off between training and evaluation."""
    return [record[key] for record in records if record[key] is not None]


def described_layers(of_seeds: Sequence[Sequence[int]]) -> str:
    """The trained layers of an arm."""
    if any(layers != of_seeds[0] for layers in of_seeds):
        return f"{len(of_seeds[0])}, others for each seed"
    return "all" if len(of_seeds[0]) == DEPTH else ", ".join(map(str, of_seeds[0])) or "none"


def score(record: Record, kind: str) -> float:
    """Mean over tasks of the accuracy by likelihood."""
    return float(record["scores"]["accuracies"][f"likelihood/{kind}"])


def outcomes(records: Sequence[Record], kind: str = "visual") -> dict[str, np.ndarray]:
    """Right or wrong by visual or text task: (seeds, items)."""
    by_task: dict[str, list[list[bool]]] = {}
    for record in records:
        own: dict[str, list[bool]] = {}
        for item in record["scores"]["items"]:
            if item["visual"] == (kind == "visual"):
                own.setdefault(item["task"], []).append(item["likeliest"] == item["answer"])
        for task, values in own.items():
            by_task.setdefault(task, []).append(values)
    return {task: np.array(values, dtype=float) for task, values in by_task.items()}


def pairs(records: Sequence[Record], reference: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Records of two arms with the same seed; one without a seed, of what was not trained, goes with all."""
    every = [(ours, theirs) for ours in records for theirs in reference]
    return [(a, b) for a, b in every if a["seed"] == b["seed"] or None in (a["seed"], b["seed"])]


def resampled_scores(both: Sequence[tuple[Record, Record]], kind: str = "visual") -> tuple[np.ndarray, np.ndarray]:
    """Visual or text scores of two arms in bootstrap resamples, (R,) each.

    Items are drawn with replacement inside each task, and seeds too, for both arms alike: the pairs stay pairs.
    """
    ours, theirs = (outcomes(records, kind) for records in zip(*both, strict=True))
    rng = np.random.default_rng(0)
    seeds = len(both)
    scores_2R = np.empty((2, RESAMPLES))
    for number in range(RESAMPLES):
        of_seeds = rng.integers(seeds, size=seeds)
        means = []
        for task, values in ours.items():
            of_items = rng.integers(values.shape[1], size=values.shape[1])
            means.append([each[task][of_seeds][:, of_items].mean() for each in (ours, theirs)])
        scores_2R[:, number] = np.mean(means, 0)
    return scores_2R[0], scores_2R[1]


def task_line(arm: str, records: Sequence[Record]) -> dict[str, str]:
    """A row of the table by visual task."""
    return {"arm": arm} | {task: ranged([score(record, task) for record in records]) for task in outcomes(records)}


def pruning_lines(pruned: dict[tuple[str, bool, int], list[Record]]) -> list[dict[str, str]]:
    """A row for every number of removed layers."""
    counts = sorted({removed for _, _, removed in pruned})
    lines = []
    for count in counts:
        line = {"removed": str(count)}
        for healed in (False, True):
            label = ", healed" if healed else ""
            ours, theirs = (pruned.get((arm, healed, count), []) for arm in PRUNED)
            for arm, records in zip(PRUNED, (ours, theirs), strict=True):
                line[f"{arm}{label}"] = ranged([score(record, "visual") for record in records])
            both = pairs(ours, theirs)
            line[f"difference in points{label} (95 % interval)"] = difference(both) if both else ""
        lines.append(line)
    return lines


def difference(both: Sequence[tuple[Record, Record]], kind: str = "visual") -> str:
    """Score of one arm less that of another, in percentage points."""
    mean = 100 * np.mean([score(a, kind) - score(b, kind) for a, b in both])
    low, high = compare(*(100 * scores_R for scores_R in resampled_scores(both, kind))).difference
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def summary(pruned: dict[tuple[str, bool, int], list[Record]]) -> list[dict[str, Any]]:
    """Scores of the pruned models as plain data."""
    return [
        {"arm": arm, "healed": healed, "removed": removed}
        | {"layers": [r["removed"] for r in records], "visual": [score(r, "visual") for r in records]}
        for (arm, healed, removed), records in pruned.items()
    ]


def plot_arms(found: dict[str, list[Record]], path: Path) -> None:
    """Visual and text score of every arm, a point for every seed; what guessing scores is dashed."""
    figure = Figure(figsize=(9, 0.42 * len(found) + 1.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        for place, records in enumerate(found.values()):
            values = [score(record, kind) for record in records]
            panel.barh(place, np.mean(values), color="tab:blue" if kind == "visual" else "tab:gray", alpha=0.55)
            panel.plot(values, [place] * len(values), "k.", markersize=4)
        panel.axvline(chance(next(iter(found.values()))[0], kind), color="black", linestyle="--", linewidth=0.8)
        panel.set_xlabel(f"{kind} accuracy")
    figure.suptitle("by likelihood, mean over tasks; points are seeds, dashed is guessing", fontsize=10)
    panels[0].set_yticks(range(len(found)), list(found))
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=130)


def plot_pruning(pruned: dict[tuple[str, bool, int], list[Record]], path: Path) -> None:
    """Visual score against removed layers, a line for every seed."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    counts = sorted({removed for _, _, removed in pruned})
    for panel, healed in zip(panels, (False, True), strict=True):
        for arm, colour in zip(PRUNED, ("tab:blue", "tab:orange"), strict=True):
            lines: dict[int, list[tuple[int, float]]] = {}
            for count in counts:
                for record in pruned.get((arm, healed, count), []):
                    lines.setdefault(record["seed"], []).append((count, score(record, "visual")))
            for number, points in enumerate(lines.values()):
                label = f"{arm}-tuned, by seed" if number == 0 else None
                panel.plot(*zip(*points, strict=True), "o-", color=colour, alpha=0.7, markersize=4, label=label)
        panel.set_title("healed" if healed else "not healed", fontsize=10)
        panel.set_xlabel(f"decoder layers removed, of {DEPTH}")
        panel.set_xticks(counts)
    panels[0].set_ylabel("visual accuracy by likelihood")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def spanned(interval: Interval | None) -> str:
    """An interval of a ratio."""
    return "" if interval is None else f"({interval.low:.1%} to {interval.high:.1%})"


def ranged(values: Sequence[float], form: str = "{:.1%}") -> str:
    """Mean, and smallest to largest where there are several."""
    if len(values) < 2:
        return form.format(values[0]) if values else ""
    mean, low, high = (form.format(value) for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"
