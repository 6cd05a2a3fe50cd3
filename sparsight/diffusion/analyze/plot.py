"""An analysis as pictures: heat maps over site and timestep, decay with distance, errors of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sparsight.common.names import short_names
from sparsight.diffusion.analyze.analysis import Analysis
from sparsight.diffusion.analyze.attention.sums import BucketSums
from sparsight.diffusion.analyze.candidates import BASELINES
from sparsight.diffusion.analyze.run import SiteRecord

MISSING = float("nan")
MAPS = {  # title and column of the table
    "effective keys, share of all": "effective_keys",
    "receptive field / if even": "receptive_field",
    "of high frequencies / if even": "high_receptive_field",
    "low-frequency share": "low_frequency_share",
    "rank of the map": "rank",
    "attention on text": "text_share",
}
MOST_NUMBERS = 14  # rows or columns of a heat map whose cells are written into
MOST_NAMES = 45


def plot_maps(analysis: Analysis, path: Path) -> None:
    """Write a PNG of heat maps: a row for every site, a column for every timestep bucket; means over heads."""
    known = list(analysis.found.sites.values())
    joint = any(each.site.text for each in known)
    shown = {title: key for title, key in MAPS.items() if joint or key != "text_share"}
    figure = Figure(figsize=(2.35 * (len(shown) + 1) + 1.2, _height(len(known))), layout="constrained")
    panels = figure.subplots(1, len(shown) + 1, sharey=True)
    buckets = range(analysis.found.settings.buckets)
    for panel, (title, key) in zip(panels, shown.items(), strict=False):
        values = [[_mean_over_heads(each, bucket, key) for bucket in buckets] for each in known]
        _heat(panel, values, title, figure, low=0.0, high=None if key == "rank" else 1.0)
    sensitivity = [[_or_missing(analysis.sensitivity(each.site.path, bucket)) for bucket in buckets] for each in known]
    _heat(panels[-1], sensitivity, "sensitivity of the prediction", figure, low=0.0, high=None)
    _name_rows(panels[0], short_names([each.site.path for each in known]))
    for panel in panels:
        edges = [f"{bucket / len(buckets):.2g}" for bucket in range(len(buckets) + 1)]
        panel.set_xticks([edge - 0.5 for edge in range(len(edges))], edges, fontsize=7)
        panel.set_xlabel("noise level", fontsize=8)
    figure.suptitle(
        f"{analysis.name}: attention by site and noise level, means over heads; white: no samples",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def plot_decay(analysis: Analysis, path: Path) -> None:
    """Write a PNG of curves: the mass of one key against its distance from the query, a line for every site."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    known = list(analysis.found.sites.values())
    names = short_names([each.site.path for each in known])
    titles = ("attention", "high frequencies of it, absolute values")
    for panel, title, high in zip(panels, titles, (False, True), strict=True):
        for number, (each, name) in enumerate(zip(known, names, strict=True)):
            curve = _mean_curve(each, each.sums.high_mass if high else each.sums.mass)
            points = [(distance, mass * each.grid.tokens) for distance, mass in enumerate(curve) if mass and distance]
            if points:
                x, y = zip(*points, strict=True)
                shade = colormaps["viridis"](number / max(1, len(known) - 1) * 0.9)
                panel.plot(x, y, color=shade, marker="o", markersize=2.5, linewidth=1.2, label=name)
        panel.axhline(1.0, color="black", linestyle=":", linewidth=1)
        panel.annotate("even", (0.99, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        most = max(max(each.grid.sizes) for each in known)
        ticks = [2**power for power in range(int(math.log2(max(1, most - 1))) + 1)]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xlabel("distance in tokens (on the axis on which it is larger)")
        panel.set_ylabel("mass of a key / mean over keys")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3, which="both")
    shades = "" if len(known) <= MOST_NAMES else f"; {len(known)} sites, the first dark, the last light"
    if not shades:
        handles, labels = panels[0].get_legend_handles_labels()
        columns = 1 + (len(known) - 1) // 16
        figure.legend(handles, labels, loc="outside right upper", title="site", fontsize=7, ncols=columns)
    figure.suptitle(f"{analysis.name}: decay with distance, all noise levels and heads{shades}", fontsize=10)
    figure.savefig(path, dpi=130)


def plot_errors(analysis: Analysis, path: Path) -> None:
    """Write a PNG of two heat maps: errors of every candidate at every site, at the site and in the prediction."""
    known = list(analysis.found.sites.values())
    names = [*analysis.found.names, *BASELINES]
    figure = Figure(figsize=(2.0 + 1.55 * len(names), _height(len(known)) + 1.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("relative L2 error of the site's output", "of the prediction, that site alone changed")
    for panel, title, kind in zip(panels, titles, ("after", "prediction"), strict=True):
        values = [[_error(each, name, kind) for name in names] for each in known]
        _heat(panel, values, title, figure, low=None, high=None, logarithmic=True, colours="viridis_r")
        lines = [name.replace("(", "\n(", 1) for name in names]
        panel.set_xticks(range(len(names)), lines, rotation=40, ha="right", fontsize=7)
    _name_rows(panels[0], short_names([each.site.path for each in known]))
    figure.suptitle(f"{analysis.name}: candidates before training", fontsize=10)
    figure.savefig(path, dpi=130)


def _heat(
    panel: Any,
    values: Sequence[Sequence[float]],
    title: str,
    figure: Figure,
    *,
    low: float | None,
    high: float | None,
    logarithmic: bool = False,
    colours: str = "viridis",
) -> None:
    """A heat map with its numbers where they are few; cells without a value stay white."""
    known = [value for row in values for value in row if math.isfinite(value) and (value > 0 or not logarithmic)]
    least, most = (min(known), max(known)) if known else (1.0, 1.0)
    norm = LogNorm(least, most if most > least else least * 1.01) if logarithmic else None
    limits = {} if norm else {"vmin": low, "vmax": high if high is not None else most or 1.0}
    shown = [
        [value if math.isfinite(value) and (value > 0 or not norm) else MISSING for value in row] for row in values
    ]
    image = panel.imshow(shown, aspect="auto", cmap=colours, norm=norm, interpolation="nearest", **limits)
    panel.set_title(title, fontsize=8)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=6, which="both")
    if norm is not None:
        plain_ticks(bar.ax.yaxis)
    if len(values) > MOST_NUMBERS or len(values[0]) > MOST_NUMBERS:
        return
    for at, row in enumerate(values):
        for column, value in enumerate(row):
            if math.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value if value > 0 or not norm else least))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                text = f"{value:.2g}" if value < 100 else f"{value:.0f}"
                panel.text(column, at, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def plain_ticks(axis: Any) -> None:
    """Numbers as they are written, on an axis of logarithms that may span less than a decade."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))


def _name_rows(panel: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // MOST_NAMES)
    panel.set_yticks(range(0, len(names), step), names[::step], fontsize=7)


def _height(rows: int) -> float:
    return max(2.6, min(14.0, 1.6 + 0.28 * rows))


def _mean_over_heads(known: SiteRecord, bucket: int, key: str) -> float:
    if not known.sums.samples(bucket):
        return MISSING
    values = [known.sums.row(bucket, head)[key] for head in range(known.site.heads)]
    numbers = [float(str(value)) for value in values if value is not None]
    if not numbers:
        return MISSING
    even = known.sums.even_field() or 1
    whole = {"effective_keys": known.grid.tokens, "receptive_field": even, "high_receptive_field": even}
    return sum(numbers) / len(numbers) / whole.get(key, 1)


def _mean_curve(known: SiteRecord, sums: BucketSums) -> list[float]:
    """Mass of a key by distance, over all samples and heads."""
    weighted: list[float] = []
    total = 0
    for bucket in range(known.sums.buckets):
        samples = known.sums.samples(bucket)
        for head in range(known.site.heads if samples else 0):
            curve = [mass or 0.0 for mass in known.sums.per_key(sums, bucket, head)]
            weighted += [0.0] * (len(curve) - len(weighted))
            weighted = [a + samples * b for a, b in zip(weighted, curve, strict=False)]
            total += samples
    return [value / total for value in weighted]


def _error(known: SiteRecord, name: str, kind: str) -> float:
    if name not in known.names():
        return MISSING
    errors = known.errors[name]
    return _or_missing((errors.after if kind == "after" else errors.prediction).relative())


def _or_missing(value: float | None) -> float:
    return MISSING if value is None else value
