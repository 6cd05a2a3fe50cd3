"""The ``report`` verb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparsight.common.errors import ConfigurationError
from sparsight.report.page import write_page
from sparsight.report.read import find_run, read_run, runs_below

PAGE = "report.html"


def _say_later(taken: Path, place: Path) -> None:
    """Tell of runs below a folder that are newer than the one that was taken, as they trained nothing."""
    if taken == place:
        return
    found = runs_below(place)
    if later := [str(folder) for folder in found[found.index(taken) + 1 :]]:
        print(f"Later runs there trained nothing; name one for its page: {', '.join(later)}")


def main(arguments: Sequence[str]) -> None:
    """Write the page of a run, or of several."""
    parser = argparse.ArgumentParser(
        prog="sparsight report",
        description="One page of HTML for a run or several beside each other: results, samples, curves, errors of "
        "sites, costs, configuration and commands. It needs no other file and no connection.",
    )
    parser.add_argument(
        "runs", nargs="+", help="log folders of runs, or folders above: their newest run that trained is taken"
    )
    parser.add_argument("--output", help=f"file to write; {PAGE} in the log folder, or here for several runs")
    parser.add_argument("--names", nargs="+", help="what the runs are called; their folders if not given")
    given = parser.parse_args(arguments)
    if given.names and len(given.names) != len(given.runs):
        parser.error(f"--names has {len(given.names)} for {len(given.runs)} runs")
    names = given.names or [None] * len(given.runs)
    try:
        runs = [read_run(run, name=name) for run, name in zip(given.runs, names, strict=True)]
        beside = find_run(Path(given.runs[0])) if len(runs) == 1 else Path()
        print(f"Report: {write_page(runs, Path(given.output or beside / PAGE))}")
        for run, place in zip(runs, given.runs, strict=True):
            _say_later(run.folder, Path(place))
    except (ConfigurationError, OSError, ValueError) as error:
        raise SystemExit(f"sparsight: {error}") from error
