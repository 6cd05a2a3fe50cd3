"""The front page's figure: quality and speed of the study's arms in one plot, drawn from its tables.

``python -m benchmarks.front_figure`` reads ``docs/study.md`` and writes ``docs/quality_and_speed.png``.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
NAMES = {
    "delta_conv_default": "\N{GREEK CAPITAL LETTER DELTA}ConvBlock, default",
    "delta_conv_paper": "paper",
    "delta_conv_released": "released",
    "delta_conv_wide": "wide",
    "neighborhood_attention": "windows 7x7",
    "neighborhood_attention_9_long": "windows 9x9, long",
    "no_mixing": "no mixing (control)",
    "focal_cells": "own tile and 64 cells, long",
}

LOWER = {"delta_conv_released": -11, "neighborhood_attention_9_long": -2}  # points that a name stands below, or beside


def tables(page: str) -> list[dict[str, dict[str, str]]]:
    """Tables of a page whose first column names arms: cells by arm and column."""
    found: list[dict[str, dict[str, str]]] = []
    head: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[:1] == ["arm"]:
            head = cells
            found.append({})
        elif head and cells and not set(cells[0]) <= {"-"}:
            found[-1][cells[0]] = dict(zip(head, cells, strict=True))
        elif not cells:
            head = []
    return found


def number(cell: str) -> float:
    """The first number of a cell."""
    match = re.match(r"[\d.]+", cell)
    if match is None:
        raise ValueError(f"{cell!r} begins with no number")
    return float(match[0])


def main() -> None:
    """Draw it."""
    quality: dict[str, dict[str, str]] = {}
    cost: dict[str, dict[str, str]] = {}
    for table in tables((DOCS / "study.md").read_text(encoding="utf-8")):
        for arm, cells in table.items():
            if "Frechet distance" in cells:
                quality.setdefault(arm, cells)  # of the teacher, the first table's
            elif "denoiser, 4096 tokens" in cells:
                cost[arm] = cells
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    teacher = number(quality["teacher"]["Frechet distance"])
    axes.axhline(teacher, color="black", linewidth=1, linestyle="--")
    axes.plot([1], [teacher], "ks")
    axes.annotate("teacher (attention)", (1, teacher), xytext=(6, -12), textcoords="offset points", fontsize=9)
    for arm, name in NAMES.items():
        place = number(cost[arm]["denoiser, 4096 tokens"]), number(quality[arm]["Frechet distance"])
        axes.plot(*place, "o")
        axes.annotate(name, place, xytext=(6, LOWER.get(arm, 4)), textcoords="offset points", fontsize=9)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(0.6, 12),
        ylim=(85, 750),
        xlabel="times faster than the teacher, whole denoiser at 4096 tokens a site (CPU)",
        ylabel="Frechet distance, 256 tokens a site",
        xticks=[0.75, 1, 2, 4, 8],
        yticks=[100, 150, 200, 300, 600],
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "quality_and_speed.png", dpi=150)


if __name__ == "__main__":
    main()
