"""Attention over images, as PNGs and numbers."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from sparsight.lvlm.scores.maps.measure import LayerView, SampleView
from sparsight.lvlm.scores.maps.panels import Panel

MOST_PANELS = 8  # of a sample; further ones are in the numbers alone
SIDE = 1.9  # of a panel, in inches
COLOURS, GONE = "inferno", "0.82"
LINE = 30  # letters for each column of panels


def draw_sample(view: SampleView, path: Path, *, title: str, texts: tuple[str, str]) -> None:
    """Write a PNG: a row for every image or part of one, and a column for every layer, with a scale of its own.

    Args:
        view: What is drawn.
        path: File to write.
        title: Model and methods.
        texts: Question and answer.
    """
    panels = view.panels[:MOST_PANELS]
    heights = [min(max(panel.shape[0] / panel.shape[1], 0.4), 2.0) for panel in panels]
    columns = len(view.views) + 1
    lines = _headline(view, title, texts, width=LINE * columns)
    size = (SIDE * columns + 0.4, SIDE * sum(heights) + 0.7 + 0.13 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left")
    axes = figure.subplots(len(panels), columns, squeeze=False, height_ratios=heights)
    for number, (row, panel) in enumerate(zip(axes, panels, strict=True)):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        _picture(row[0], panel, grey=False)
        row[0].set_ylabel(panel.title, fontsize=8)
        for axis, layer in zip(row[1:], view.views, strict=True):
            _picture(axis, panel, grey=True)
            _cells(axis, layer.grids[number], view.present[number], _most(layer))
    for axis, layer in zip(axes[0][1:], view.views, strict=True):
        axis.set_title(_about(layer, view), fontsize=8)
    axes[0][0].set_title("as the model saw it", fontsize=8)
    for column, most in enumerate([1.0, *map(_most, view.views)]):
        shown = [axes[row][column] for row in range(len(panels))]
        colours = ScalarMappable(Normalize(0.0, most), COLOURS)
        bar = figure.colorbar(colours, ax=shown, location="bottom", aspect=18, shrink=0.9, pad=0.02)
        bar.ax.set_visible(column > 0)  # the picture's own only keeps it as large as the others
        bar.set_ticks([0.0, most], labels=["0", f"{100 * most:.2g} %"])
        bar.ax.tick_params(labelsize=7, length=2)
    figure.savefig(path, dpi=100)


def _headline(view: SampleView, title: str, texts: tuple[str, str], *, width: int) -> list[str]:
    whose = {"answer": "the answer's words look, on average", "last": "the prompt's last token looks"}[view.asks]
    said = [f"{title}: where {whose}; mean over heads, % of all attention", f"Q: {texts[0]}"]
    said += [f"A: {texts[1]}"] if texts[1] else []
    hidden = len(view.panels) - MOST_PANELS
    said += [f"{hidden} further images or parts are not drawn"] if hidden > 0 else []
    lines = [line for text in said for line in textwrap.wrap(text, width, max_lines=2)]
    return [line.replace("$", r"\$") for line in lines]  # one would begin a formula


def _about(layer: LayerView, view: SampleView) -> str:
    held = sum(int((~grid.isnan()).sum()) for grid in layer.grids)
    tokens = sum(int(present.sum()) for present in view.present)
    left = "" if held == tokens else f"\n{held} of {tokens} tokens are there"
    return f"layer {layer.layer}: {100 * layer.on_images:.3g} % on images{left}"


def _most(layer: LayerView) -> float:
    """The most that a token of any panel gets, at which its scale ends."""
    seen = [grid[~grid.isnan()] for grid in layer.grids]
    return max([float(values.max()) for values in seen if len(values)], default=0.0) or 1.0


def _picture(axis: Any, panel: Panel, *, grey: bool) -> None:
    rows, columns = panel.shape
    shown = panel.pixels.mean(-1) if grey else panel.pixels
    options: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} if grey else {}
    axis.imshow(shown.numpy(), extent=(0, columns, rows, 0), aspect="auto", **options)
    axis.set_box_aspect(min(max(rows / columns, 0.4), 2.0))


def _cells(axis: Any, grid: Tensor, present: Tensor, most: float) -> None:
    rows, columns = grid.shape
    axis.imshow(
        grid.numpy(), extent=(0, columns, rows, 0), aspect="auto", cmap=COLOURS, vmin=0.0, vmax=most, alpha=0.65
    )
    for row, column in (present & grid.isnan()).nonzero().tolist():  # dropped on the way here
        axis.add_patch(Rectangle((column, row), 1, 1, facecolor=GONE, edgecolor="white", linewidth=0.4))


def numbers_of(view: SampleView, texts: tuple[str, str]) -> dict[str, Any]:
    """A sample as plain data: shares of attention by layer, image and cell; null where a layer holds no token."""
    return {
        "question": texts[0],
        "answer": texts[1],
        "asks": view.asks,
        "layers": {
            str(layer.layer): {
                "on_images": layer.on_images,
                "panels": [
                    {"title": panel.title, "crops": list(panel.crops), "grid": _plain(grid)}
                    for panel, grid in zip(view.panels, layer.grids, strict=True)
                ],
            }
            for layer in view.views
        },
    }


def _plain(grid: Tensor) -> list[list[float | None]]:
    held = torch.where(grid.isnan(), -1.0, grid).tolist()
    return [[None if value < 0 else value for value in row] for row in held]
