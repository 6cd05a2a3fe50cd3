"""Time against tokens, attention and mixer, as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparsight.common.measure.contest import Measured
from sparsight.diffusion.measure.rows import Row

COLOURS = {"attention": "tab:red", "mixer": "tab:blue"}
STYLES = {"forward": "-", "forward+backward": "--"}


def plot_rows(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Write a PNG of log-log panels: a column for every site and the denoiser, a row for every precision.

    Bars span the 10th to the 90th percentile of the runs; what was skipped has no point.
    """
    names = list(dict.fromkeys((row.name, row.heads, row.channels) for row in rows))
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    figure = Figure(figsize=(4.2 * len(names) + 0.8, 3.4 * len(dtypes) + 1.1), layout="constrained")
    axes = figure.subplots(len(dtypes), len(names), squeeze=False)
    for line, dtype in zip(axes, dtypes, strict=True):
        for panel, name in zip(line, names, strict=True):
            shown = [row for row in rows if (row.name, row.heads, row.channels) == name and row.dtype == dtype]
            _panel(panel, shown)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def _panel(panel: Any, rows: Sequence[Row]) -> None:
    for direction, style in STYLES.items():
        for name, colour in COLOURS.items():
            chosen = [row for row in rows if row.direction == direction]
            if not chosen:
                continue
            points = [(row.tokens, measured.timing) for row in chosen if (measured := _of(row, name)).timing]
            x = [tokens for tokens, _ in points]
            y = [1e3 * timing.median for _, timing in points if timing]
            below = [1e3 * (timing.median - timing.p10) for _, timing in points if timing]
            above = [1e3 * (timing.p90 - timing.median) for _, timing in points if timing]
            label = f"{name}, {direction}"
            panel.errorbar(x, y, (below, above), color=colour, linestyle=style, marker="o", markersize=4, label=label)
    first = rows[0]
    tokens = sorted({row.tokens for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(tokens, [str(count) for count in tokens])
    panel.set_xlabel("tokens" if first.level == "site" else "tokens of the largest site")
    panel.set_ylabel("ms")
    shape = f"\n{first.heads} heads, {first.channels} channels" if first.channels else "\nteacher and student"
    panel.set_title(f"{first.name}{shape}, {first.dtype}", fontsize=9)
    panel.grid(alpha=0.3, which="both")


def _of(row: Row, name: str) -> Measured:
    return row.attention if name == "attention" else row.mixed
