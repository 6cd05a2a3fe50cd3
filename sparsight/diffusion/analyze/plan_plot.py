"""A plan as a picture: what stands where, and how plans compare with uniform choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparsight.common.names import short_names
from sparsight.diffusion.analyze.costs import ATTENTION, CALLED
from sparsight.diffusion.analyze.knapsack import cheapest
from sparsight.diffusion.analyze.plan import Plan, PlanReport, groups_of, plan_under
from sparsight.diffusion.analyze.plot import plain_ticks
from sparsight.diffusion.analyze.run import Recording

KEPT = "#d9d9d9"
POINTS = 24


def plot_plan(report: PlanReport, found: Recording, path: Path, *, title: str) -> None:
    """Write a PNG: a map of mixers over sites and budgets, and the errors of plans and uniform choices over cost."""
    frontier = _frontier(report, found)
    names = list(found.names)
    palette = [to_rgba(KEPT), *_palette(len(names))]
    colours = dict(zip([ATTENTION, *names], palette, strict=True))
    height = max(4.6, min(14.0, 2.2 + 0.26 * len(found.sites)))
    figure = Figure(figsize=(13.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _map(left, frontier, report, found, colours)
    _errors(right, frontier, report, colours)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _palette(count: int) -> list[Any]:
    """Colours that can be told apart, and from that of attention, which is grey."""
    shades = [shade for name in ("tab10", "Set2", "Dark2") for shade in colormaps[name].colors]  # type: ignore[attr-defined]
    vivid = [shade for shade in shades if max(shade) - min(shade) > 0.1]
    return [vivid[at % len(vivid)] for at in range(count)]


def _frontier(report: PlanReport, found: Recording) -> list[Plan]:
    """Plans from the cheapest choice to the untouched denoiser."""
    costs = report.costs
    least = (costs.around + cheapest(groups_of(found, costs)[0])) / costs.whole
    shares = [least + (1 - least) * point / (POINTS - 1) for point in range(POINTS)]
    return [plan_under(found, costs, share * (1 + 1e-9), of=report.of, name="plan") for share in shares]


def _map(panel: Any, frontier: list[Plan], report: PlanReport, found: Recording, colours: dict[str, Any]) -> None:
    order = list(colours)
    cells = [[order.index(plan.chosen.get(path, ATTENTION)) for plan in frontier] for path in found.sites]
    low, high = frontier[0].cost, 1.0
    step = (high - low) / (POINTS - 1)
    panel.imshow(
        cells,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([colours[name] for name in order]),
        vmin=-0.5,
        vmax=len(order) - 0.5,
        extent=(100 * (low - step / 2), 100 * (high + step / 2), len(cells) - 0.5, -0.5),
    )
    panel.axvline(100 * report.budget, color="black", linewidth=1.2)
    panel.annotate(" budget", (100 * report.budget, -0.5), fontsize=8, va="bottom", annotation_clip=False)
    names = short_names(list(found.sites))
    every = -(-len(names) // 45)
    panel.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    for edge in range(1, len(names)):
        panel.axhline(edge - 0.5, color="white", linewidth=0.6)
    panel.set_xlabel(f"budget, % of the untouched denoiser's {CALLED[report.of]}")
    panel.set_title("which mixer plans have at which site", fontsize=9, pad=14)


def _errors(panel: Any, frontier: list[Plan], report: PlanReport, colours: dict[str, Any]) -> None:
    points = [plan for plan in frontier if plan.error > 0]
    panel.plot([100 * p.cost for p in points], [p.error for p in points], color="black", linewidth=1.3, label="plans")
    for uniform, beside in report.uniform:
        colour = colours[next(iter(uniform.chosen.values()))]
        panel.plot(100 * uniform.cost, uniform.error, "s", color=colour, markersize=7)
        for plan, marker in ((uniform, "s"), (beside, "o")):
            if plan.measured and plan.chosen:
                panel.plot(100 * plan.cost, plan.measured, marker, color=colour, markersize=7, fillstyle="none")
    star: dict[str, Any] = {"marker": "*", "color": "black", "markersize": 13, "linestyle": ""}
    panel.plot(100 * report.plan.cost, report.plan.error, **star, label="the plan under the budget")
    if report.plan.measured:
        panel.plot(100 * report.plan.cost, report.plan.measured, **star, fillstyle="none")
    panel.plot([], [], "s", color="grey", label="one mixer everywhere")
    panel.plot([], [], "s", color="grey", fillstyle="none", label="the same, measured")
    panel.plot([], [], "o", color="grey", fillstyle="none", label="the plan of that cost, measured")
    panel.axvline(100 * report.budget, color="black", linewidth=0.8, linestyle=":")
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    panel.set_xlabel(f"cost, % of the untouched denoiser's {CALLED[report.of]}")
    panel.set_ylabel("relative L2 error of the prediction")
    panel.set_title("errors before training: filled by single sites, hollow measured", fontsize=9)
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=7, loc="best")
