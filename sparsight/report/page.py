"""The page: runs as HTML."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparsight import __version__
from sparsight.common.disk.files import write_text
from sparsight.common.tables import measured, short
from sparsight.publish.shared_config import shared_config
from sparsight.report.charts import WORDS, layer_map, line_chart, site_map
from sparsight.report.read import CONFIG, RunFolder

SITE_ERRORS = "val/relative_l2/"
OF_SITES = "/relative_l2/"  # in names of what is told of every site
_MOST_GRIDS = 12  # of a run, evenly chosen: each is an image in the page
_MOST_CHARTS = 24  # those of sites are a map instead; of one task each come last
_UNET = ("down_blocks", "mid_block", "up_blocks")


def write_page(runs: Sequence[RunFolder], path: Path) -> Path:
    """Write one self-contained page.

    Args:
        runs: One or several, which are then compared.
        path: File to write; replaced if it is there.

    Returns:
        The file.
    """
    write_text(path, page(runs))
    return path


def page(runs: Sequence[RunFolder]) -> str:
    """One self-contained page as HTML."""
    environment = Environment(
        loader=PackageLoader("sparsight.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["measured"] = measured
    names, charts = [run.name for run in runs], list(_charts(runs))
    return environment.get_template("page.html").render(
        title=" against ".join(names) if len(runs) <= 3 else f"{len(runs)} runs",
        subtitle="; ".join(dict.fromkeys(_what(run) for run in runs)),
        runs=[_described(run) for run in runs],
        results=_results(runs),
        grids=[_grids(run) for run in runs if run.grids],
        conversations=[(run.name, run.conversations) for run in runs if run.conversations],
        charts=charts[:_MOST_CHARTS],
        hidden=len(charts[_MOST_CHARTS:]),
        maps=[
            (run.name, site_map(errors, colour=number))
            for number, run in enumerate(runs)
            if (errors := site_errors(run))
        ],
        layers=[(run.name, layer_map(run.layers), _removals(run.layers)) for run in runs if run.layers],
        words=WORDS,
        costs=[row for run in runs if run.costs for row in _costs(run, named=len(runs) > 1)],
        counted=next((run.costs["counted"] for run in runs if run.costs), ""),
        made=f"Made by sparsight {__version__} on {date.today().isoformat()}.",
    )


def site_errors(run: RunFolder) -> dict[str, float]:
    """The last relative error of every site, in the order of the network where the run has told it."""
    errors = {name.removeprefix(SITE_ERRORS): value for name, value in run.last.items() if name.startswith(SITE_ERRORS)}
    order = [site["path"] for site in run.costs.get("sites", ())]
    order.sort(key=_part)  # which keeps the order inside a part
    return dict(sorted(errors.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _removals(layers: Mapping[str, Any]) -> list[str]:
    """When which layers left, and by what they were chosen, in words."""
    lines = []
    for removal in layers["removals"]:
        numbers = ", ".join(map(str, removal["layers"]))
        by = f", the least by {removal['score']}" if removal["score"] else ""
        lines.append(
            f"{'layers' if len(removal['layers']) > 1 else 'layer'} {numbers} left at step {removal['step']}{by}"
        )
    return lines


def _part(path: str) -> int:
    """Where the part of a UNet stands that a site is in; diffusers lists the middle last."""
    return _UNET.index(name) if (name := path.partition(".")[0]) in _UNET else 0


def _what(run: RunFolder) -> str:
    """Module and what it starts from, in words."""
    model = run.config.get("model") or {}
    options = model.get("init_args") or {}
    base = options.get("teacher") or options.get("base")
    named = str(model.get("class_path", "run")).rpartition(".")[2]
    steps = run.steps if run.trained else 0  # that was shorter than its logging interval tells none
    told = f", {steps} steps" if steps else ""
    return f"{named}{f' of {Path(str(base)).name}' if base else ''}{told}"


def _described(run: RunFolder) -> dict[str, Any]:
    commands = []
    config = run.folder / CONFIG
    if run.scores and run.config:
        commands.append(["sparsight", "test", "--config", str(config)])
    elif run.config and run.trained:  # a measurement's configuration does not say of which checkpoint
        commands.append(["sparsight", "fit", "--config", str(config)])
        for verb in ("validate", "export") if run.checkpoint else ():
            commands.append(["sparsight", verb, "--config", str(config), "--ckpt_path", str(run.checkpoint)])
    return {
        "name": run.name,
        "metrics": run.metrics,
        "scores": run.scores,
        "begun_in": str(run.begun_in or ""),
        "commands": [shlex.join(command) for command in commands],
        "config": shared_config(run.text) if run.config else "",
    }


def _results(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """The last values of validation and test, without those that the map of sites shows."""
    names = dict.fromkeys(name for run in runs for name in run.last)
    kept = [name for name in sorted(names, key=_rank) if name.startswith(("val/", "test/")) and OF_SITES not in name]
    return [(name, [measured(run.last[name]) if name in run.last else "" for run in runs]) for name in kept]


def _charts(runs: Sequence[RunFolder]) -> Iterator[tuple[str, Any]]:
    names = dict.fromkeys(name for run in runs for name in run.curves if OF_SITES not in name)
    for name in sorted(names, key=_rank):
        yield name, line_chart({run.name: run.curves.get(name, []) for run in runs})


def _rank(name: str) -> tuple[bool, int, bool, str]:
    """The loss first, then what sums up, then what is told of single tasks."""
    return not name.startswith("train/loss"), name.count("/"), not name.startswith("train/"), name


def _grids(run: RunFolder) -> dict[str, Any]:
    steps = list(run.grids)
    if len(steps) > _MOST_GRIDS:
        steps = [steps[round(n * (len(steps) - 1) / (_MOST_GRIDS - 1))] for n in range(_MOST_GRIDS)]
    images = [base64.b64encode(run.grids[step].read_bytes()).decode() for step in steps]
    return {"run": run.name, "steps": steps, "images": [f"data:image/png;base64,{image}" for image in images]}


def _costs(run: RunFolder, *, named: bool) -> Iterator[dict[str, Any]]:
    costs, prefix = run.costs, f"{run.name}: " if named else ""
    columns = ("parameters_before", "parameters_after", "flops_before", "flops_after")
    sites = {column: sum(site[column] for site in costs["sites"]) for column in columns}
    for name, values in ((f"{len(costs['sites'])} replaced sites", sites), ("whole denoiser", costs)):
        yield {"name": prefix + name, "numbers": [*(short(values[c]) for c in columns), _times(values)]}


def _times(values: Mapping[str, Any]) -> str:
    before, after = values["flops_before"], values["flops_after"]
    return f"{before / after:.2f}x less" if 0 < after < before else f"{after / before:.2f}x" if before else ""
