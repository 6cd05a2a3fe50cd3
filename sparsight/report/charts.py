"""Charts as SVG that follow the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from sparsight.common.tables import measured

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 10, 26  # pixels around the plot
_RATIO = 50  # of largest to smallest value, above which the axis is logarithmic
_MOST_TICKS = 4.01  # and not a rounding less
_CLOSE = 0.05  # of the largest tick, which three digits no longer show
WORDS = {"tuned": "tuned", "kept": "as it was", "left": "removed"}  # of decoder layers
_MOST_POINTS = 400  # of a curve, which is thinned out


def line_chart(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Markup:
    """Curves over steps, the first in colour 0 of the page, and so on; values that are not finite are left out.

    Args:
        curves: By the name of their run.
    """
    finite = {name: [(x, y) for x, y in curve if math.isfinite(y)] for name, curve in curves.items()}
    points = [point for curve in finite.values() for point in curve]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > _RATIO
    across = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    up = _scale(_log(min(ys), logarithmic), _log(max(ys), logarithmic), HEIGHT - _BOTTOM, _TOP)
    parts = []
    ticks = _ticks(min(ys), max(ys), logarithmic)
    for value, label in zip(ticks, _labels(ticks), strict=True):
        y = up(_log(value, logarithmic))
        parts.append(
            f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for value in sorted({min(xs), max(xs)}):
        anchor = "start" if value == min(xs) != max(xs) else "end"
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {value}</text>')
    for number, (name, curve) in enumerate(finite.items()):
        drawn = [(across(x), up(_log(y, logarithmic))) for x, y in _thinned(curve)]
        label = escape(f"{name}: {measured(curve[-1][1])} at step {curve[-1][0]}") if curve else ""
        if len(drawn) == 1:
            shape = f'<circle class="dot c{number % 6}" cx="{drawn[0][0]:.1f}" cy="{drawn[0][1]:.1f}" r="3">'
            parts.append(f"{shape}<title>{label}</title></circle>")
        elif drawn:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(f'<polyline class="line c{number % 6}" points="{path}"><title>{label}</title></polyline>')
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>')


def site_map(errors: Mapping[str, float], *, colour: int = 0) -> Markup:
    """One bar for each site in the order of the network, as long as its error is large.

    Args:
        errors: By the site's path, from 0.
        colour: Number of the page's colour.
    """
    largest = max([value for value in errors.values() if math.isfinite(value)], default=0.0) or 1.0
    rows = []
    for site, value in errors.items():
        share = min(value / largest, 1.0) * 100 if math.isfinite(value) else 100.0
        rows.append(
            f'<div class="site"><span class="path">{escape(site)}</span>'
            f'<span class="bar"><span class="key c{colour % 6}" style="width:{share:.1f}%"></span></span>'
            f'<span class="value">{measured(value) if math.isfinite(value) else "not finite"}</span></div>'
        )
    return Markup(f'<div class="sites">{"".join(rows)}</div>')


def layer_map(layers: Mapping[str, Any]) -> Markup:
    """One cell for each decoder layer: whether it was tuned, stayed as it was, or left.

    Args:
        layers: As ``RunFolder.layers``.
    """
    left = {layer for removal in layers["removals"] for layer in removal["layers"]}
    cells = []
    for layer in range(layers["depth"]):
        kind = "left" if layer in left else "tuned" if layer in layers["tuned"] else "kept"
        cells.append(f'<span class="{kind}" title="layer {layer}: {WORDS[kind]}">{layer}</span>')
    return Markup(f'<div class="layers">{"".join(cells)}</div>')


def _log(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    """From values to pixels; a single value lies in the middle."""
    if high == low:
        return lambda value: (begin + end) / 2
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if low == high:
        return [low]
    if logarithmic:
        powers = [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        return powers if len(powers) > 1 else [low, high]
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= _MOST_TICKS)
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks if len(ticks) > 1 else [low, high]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Ticks in three digits, or in six where they are close to each other."""
    close = 0 < max(ticks) - min(ticks) < _CLOSE * max(map(abs, ticks))
    return [f"{tick:.6g}" if close else measured(tick) for tick in ticks]


def _thinned(curve: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    every = max(1, -(-len(curve) // _MOST_POINTS))
    return [*curve[:-1:every], curve[-1]] if curve else curve
