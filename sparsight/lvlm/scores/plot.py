"""Scores over the depth of the decoder, as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

OTHERS, HIGHEST = "tab:blue", "tab:orange"
MISSING = float("nan")


def plot_scores(
    values: Mapping[str, Sequence[float | None]],
    correlations: Mapping[str, Mapping[str, float | None]],
    path: Path,
    *,
    title: str,
) -> None:
    """Write a PNG: a panel of bars for every score, layers from left to right, and the rank correlations on the right.

    Args:
        values: Numbers by score, one a layer.
        correlations: Rank correlation of every pair of scores.
        path: File to write.
        title: Above all panels.
    """
    names = list(values)
    several = len(names) > 1
    height = max(3.0, 1.5 * len(names) + 1.0)
    figure = Figure(figsize=(12.0 if several else 7.0, height), layout="constrained")
    figure.suptitle(title, fontsize=9)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, 5))[0] if several else (figure, None)
    panels = left.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        _bars(panel, name, values[name])
    panels[-1].set_xlabel("decoder layer (orange: the highest quarter)")
    if right is not None:
        _matrix(right.subplots(), names, correlations)
    figure.savefig(path, dpi=130)


def _bars(panel: Any, name: str, values: Sequence[float | None]) -> None:
    heights = [MISSING if value is None else value for value in values]
    known = sorted(value for value in values if value is not None)
    bar = known[-max(1, (len(known) + 2) // 4)]  # as a ratio of 0.25 is rounded
    panel.bar(range(len(heights)), heights, color=[HIGHEST if height >= bar else OTHERS for height in heights])
    panel.axhline(0, color="black", linewidth=0.6)
    panel.set_title(name, fontsize=9, loc="left")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3, axis="y")


def _matrix(panel: Any, names: Sequence[str], correlations: Mapping[str, Mapping[str, float | None]]) -> None:
    numbers = [[MISSING if (r := correlations[a][b]) is None else r for b in names] for a in names]
    panel.imshow(numbers, cmap="RdBu", vmin=-1, vmax=1)
    for row, line in enumerate(numbers):
        for column, number in enumerate(line):
            shade = "white" if abs(number) > 0.7 else "black"
            panel.text(column, row, f"{number:.2f}", ha="center", va="center", fontsize=8, color=shade)
    panel.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_title("Spearman's rank correlation", fontsize=9)
