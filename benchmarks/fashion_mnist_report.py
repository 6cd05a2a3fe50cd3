"""Tables and plots of benchmarks.fashion_mnist_study, from what its steps have left on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torchvision.utils import save_image

from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text, markdown_table, short

Rows = list[dict[str, Any]]
COLOURS = [f"C{number}" for number in range(10)] + ["black"]  # the default cycle of matplotlib


def write_report(root: Path, output: Path, *, order: Sequence[str], rows: Rows, protocol: str) -> None:
    """Write ``tables.md``, ``study.json`` and the plots of every arm that was judged."""
    output.mkdir(parents=True, exist_ok=True)
    judged = {row["arm"] for row in rows}
    arms = [arm for arm in order if arm in judged]
    summary = [describe(arm, rows) for arm in arms]
    costs = {arm: benchmark_rows(root, arm) for arm in arms}
    parts = [protocol + ".", markdown_table([quality_line(entry, summary[0]) for entry in summary])]
    sizes = sorted({row["size"] for row in rows})
    if len(sizes) > 1:
        several = [arm for arm in arms if len({row["size"] for row in rows if row["arm"] == arm}) > 1]
        parts.append(markdown_table([size_line(arm, rows, sizes) for arm in several]))
        plot_sizes(several, rows, sizes, output / "sizes.png")
    if any(costs.values()):
        parts.append(markdown_table([cost_line(arm, costs[arm]) for arm in arms if costs[arm]]))
        plot_cost(costs, output / "cost.png")
    plot_quality(summary, rows, output / "quality.png")
    draw_samples(root, arms, output / "samples.png")
    write_text(output / "tables.md", "\n\n".join(parts) + "\n")
    facts = {"protocol": protocol, "environment": environment(torch.device("cpu")), "arms": summary, "rows": rows}
    write_text(output / "study.json", json_text(facts))
    print("\n\n".join(parts))


def describe(arm: str, rows: Rows) -> dict[str, Any]:
    """What an arm is and what was measured of it at 32 pixels."""
    judged = [row for row in rows if row["arm"] == arm and row["size"] == 32]
    entry: dict[str, Any] = {"arm": arm, "samples": judged[0]["samples"] if judged else None}
    for name in ("accuracy", "frechet", "kernel", "rmse_to_teacher"):
        entry[name] = [row[name] for row in judged if row[name] is not None]
    training = next((row["training"] for row in judged if row.get("training")), None)
    return entry if training is None else entry | training | {"training": training}


def quality_line(entry: dict[str, Any], teacher: dict[str, Any]) -> dict[str, str]:
    """A row of the main table; ranges are over sampling seeds."""
    ratio = mean(entry["frechet"]) / mean(teacher["frechet"])
    known = "flops" in entry
    error = entry["training"]["validation"].get("val/site_relative_l2") if known else None
    kernel = [1000 * value for value in entry["kernel"]]
    return {
        "arm": entry["arm"],
        "steps": str(entry["training"]["steps"]) if known else "",
        "seeds": str(len(entry["frechet"])),
        "FLOPs": short(entry["flops"]) if known else "",
        "judged as their class": ranged(entry["accuracy"], ".1%"),
        "Frechet distance": ranged(entry["frechet"], ".1f"),
        "against the teacher's": f"{ratio:.3f}",
        "kernel distance x 1000": ranged(kernel, ".1f"),
        "distance to the teacher's samples": f"{mean(entry['rmse_to_teacher']):.4f}",
        "site error": "" if error is None else f"{error:.3f}",
    }


def size_line(arm: str, rows: Rows, sizes: Sequence[int]) -> dict[str, str]:
    """Kernel distance and accuracy of an arm at every size; Frechet distances of unequal numbers do not compare."""
    line = {"arm": arm}
    for size in sizes:
        judged = [row for row in rows if row["arm"] == arm and row["size"] == size]
        line[f"{size} pixels: kernel distance x 1000"] = (
            f"{1000 * mean([r['kernel'] for r in judged]):.1f}" if judged else ""
        )
        line[f"{size}: judged as class"] = f"{mean([r['accuracy'] for r in judged]):.1%}" if judged else ""
    return line


def benchmark_rows(root: Path, arm: str) -> Rows:
    """What ``sparsight benchmark`` measured of an arm; nothing if it was not run."""
    path = root / arm / "benchmark" / "benchmark.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def cost_line(arm: str, rows: Rows) -> dict[str, str]:
    """Speed-up of an arm by level and tokens."""
    named = {f"{row['level']}, {row['tokens']} tokens": row for row in rows}
    return {"arm": arm} | {
        name: "" if row["speedup"] is None else f"{row['speedup']:.2f}x" for name, row in named.items()
    }


def plot_quality(summary: Sequence[dict[str, Any]], rows: Rows, path: Path) -> None:
    """Frechet distance of every arm, a point for every seed; real training images as the floor."""
    figure = Figure(figsize=(8, 0.45 * len(summary) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(summary):
        axes.barh(place, mean(entry["frechet"]), color=COLOURS[place % len(COLOURS)], alpha=0.6)
        axes.plot(entry["frechet"], [place] * len(entry["frechet"]), "k.", markersize=4)
    axes.set_yticks(range(len(summary)), [entry["arm"] for entry in summary])
    axes.invert_yaxis()
    axes.axvline(mean(summary[0]["frechet"]), color="black", linewidth=0.8, linestyle="--", label="teacher")
    real = [row["frechet"] for row in rows if row["arm"] == "real training images"]
    if real:
        axes.axvline(mean(real), color="black", linewidth=0.8, linestyle=":", label="real training images")
    axes.set_xlabel("Frechet distance to the real test images (lower is better; points are sampling seeds)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def plot_sizes(arms: Sequence[str], rows: Rows, sizes: Sequence[int], path: Path) -> None:
    """Kernel distance against the size that was sampled at."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for arm, colour in zip(arms, COLOURS, strict=False):
        points = [(s, [r["kernel"] for r in rows if r["arm"] == arm and r["size"] == s]) for s in sizes]
        found = [(size, mean(values)) for size, values in points if values]
        axes.plot(*zip(*found, strict=True), marker="o", color=colour, label=arm)
    axes.set_xticks(list(sizes))
    axes.set_xlabel("side in pixels that was sampled at (trained at 32)")
    axes.set_ylabel("kernel distance, compared at 32 pixels")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_cost(costs: dict[str, Rows], path: Path) -> None:
    """Time of attention over time of the mixer, of one site and of the whole denoiser, against tokens."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, level in zip(panels, ("site", "denoiser"), strict=True):
        for (arm, rows), colour in zip(costs.items(), COLOURS, strict=False):
            found = [(r["tokens"], r["speedup"]) for r in rows if r["level"] == level and r["speedup"] is not None]
            if found:
                panel.plot(*zip(*found, strict=True), marker="o", color=colour, label=arm)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xlabel("tokens of a site")
        panel.set_ylabel("time with attention / time with mixer")
        panel.set_title("one site" if level == "site" else "whole denoiser", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def draw_samples(root: Path, arms: Sequence[str], path: Path) -> None:
    """One row for each arm, the teacher's first, from the same noise: two images of each class."""
    files = [root / arm / "samples_seed0_size32.safetensors" for arm in arms]
    shown = [load_file(file)["images"][:20].float() / 255 for file in files if file.is_file()]
    if shown:
        save_image(torch.cat(shown), path, nrow=20, pad_value=1.0)


def mean(values: Sequence[float]) -> float:
    """Mean; not a number if there is none."""
    return sum(values) / len(values) if values else float("nan")


def ranged(values: Sequence[float], form: str) -> str:
    """Mean, and smallest to largest if there are several."""
    middle = f"{mean(values):{form}}"
    return f"{middle} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else middle
