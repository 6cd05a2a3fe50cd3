"""Two or more evaluations of the same samples, side by side: differences with paired bootstrap intervals."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.common.bootstrap import Interval, compare
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text, markdown_table
from sparsight.evaluation.reform_eval.report import (
    LEVELS,
    defined,
    numbers,
    plot_dimensions,
    read_report,
    shown,
    with_interval,
)
from sparsight.evaluation.reform_eval.scores import Estimate, ScoreKey, scores_of


def compare_reports(
    paths: Sequence[str | Path], *, output: str | Path, names: Sequence[str] | None = None, resamples: int = 2000
) -> str:
    """Compare evaluations with the first of them; writes ``comparison.md``, ``.json`` and ``.png``.

    Args:
        paths: Reports, or their folders.
        output: Folder for the comparison.
        names: What the runs are called; the names of their models if not given.
        resamples: Bootstrap draws.

    Returns:
        The table: every score, and behind it the difference to the first run with 95 % of its draws.

    Raises:
        FileNotFoundError: A report is missing.
        ValueError: There are fewer than two, they are not finished, or they answer other questions.
    """
    if len(paths) < 2:
        raise ValueError("a comparison needs two or more reports")
    reports = [read_report(path) for path in paths]
    labels = _labels(reports) if names is None else list(names)
    if len(labels) != len(reports) or len(set(labels)) < len(labels):
        raise ValueError(f"names are {labels}: give a different one for each of {len(reports)} reports")
    for path, report in zip(paths, reports, strict=True):
        _check(report, reports[0], path=path, first=paths[0])
    tasks = reports[0]["about"]["tasks"]
    runs = {
        label: scores_of(report["answers"], tasks, resamples=resamples)
        for label, report in zip(labels, reports, strict=True)
    }
    text = _table(runs)
    folder = Path(output)
    write_text(folder / "comparison.md", text + "\n")
    write_text(folder / "comparison.json", json_text(_plain(runs)))
    plot_dimensions(runs, folder / "comparison.png")
    return text


def _labels(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [str(report["about"]["model"]["name"]) for report in reports]
    if len(set(names)) == len(names):
        return names
    return [f"{number} {name}" for number, name in enumerate(names, start=1)]


def _check(report: Mapping[str, Any], first_report: Mapping[str, Any], *, path: str | Path, first: str | Path) -> None:
    if not report["complete"]:
        raise ValueError(
            f"{path} is not finished ({report['answered']} of {report['asked']}): run the same command again"
        )
    for name in ("tasks", "protocol"):
        if report["about"][name] != first_report["about"][name]:
            raise ValueError(f"{path} and {first} differ in {name}: only answers to the same questions can be compared")


def _table(runs: Mapping[str, Mapping[ScoreKey, Estimate]]) -> str:
    first, *others = runs
    lines = []
    for key, base in runs[first].items():
        line = {"": " ".join(part for part in (key.level, key.name) if part), "metric": key.metric, "by": key.method}
        line[first] = shown(base, key)
        line |= {label: f"{shown(runs[label][key], key)}; {_gap(runs[label][key], base, key)}" for label in others}
        lines.append(line)
    lines.sort(key=lambda line: LEVELS.index(line[""].partition(" ")[0]))
    about = f"In brackets 95 % of bootstrap draws; behind the semicolon the difference to {first}, drawn in pairs."
    return f"{about}\n\n{markdown_table(lines)}"


def _gap(ours: Estimate, base: Estimate, key: ScoreKey) -> str:
    return with_interval(ours.value - base.value, compare(ours.draws_R, base.draws_R).difference, key, sign="+")


def _plain(runs: Mapping[str, Mapping[ScoreKey, Estimate]]) -> list[dict[str, Any]]:
    first = next(iter(runs))
    found = []
    for label, scores in runs.items():
        for key, each in scores.items():
            base = runs[first][key]
            paired = compare(each.draws_R, base.draws_R)
            kept = each.value / base.value if base.value > 0 else np.nan
            found.append(
                {"run": label, **key._asdict(), **numbers(each), "difference": defined(each.value - base.value)}
                | {"difference_interval": _ends(paired.difference), "share_of_draws_above": defined(paired.higher)}
                | {"kept": defined(kept), "kept_interval": _ends(paired.ratio)}
            )
    return found


def _ends(found: Interval | None) -> list[float] | None:
    return None if found is None or np.isnan(found).any() else list(found)


def main(arguments: Sequence[str]) -> None:
    """The ``compare`` verb."""
    parser = argparse.ArgumentParser(
        prog="sparsight compare",
        description="Compare evaluations of the same questions with the first of them: differences with paired "
        "bootstrap intervals, as a table, JSON and a plot.",
    )
    parser.add_argument("reports", nargs="+", help="two or more report.json, or their folders")
    parser.add_argument("--output", required=True, help="folder for the comparison")
    parser.add_argument("--names", nargs="+", help="what the runs are called; the names of their models if not given")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws")
    given = parser.parse_args(arguments)
    try:
        print(compare_reports(given.reports, output=given.output, names=given.names, resamples=given.resamples))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"sparsight: {error}") from error
