"""Two or more evaluations of the same samples, side by side: differences with paired bootstrap intervals."""

from __future__ import annotations

import argparse
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from sparsight.common.disk.files import write_text
from sparsight.common.tables import WIDTH, format_table, json_text, markdown_table
from sparsight.evaluation.drawn_scores import BEGINS, DrawnScores
from sparsight.evaluation.questions.scores import Estimate, ScoreKey, paired
from sparsight.evaluation.questions.task_scores import TaskScores
from sparsight.evaluation.reform_eval.report import (
    FILE,
    LEVELS,
    Scores,
    is_share,
    numbers,
    plot_scores,
    read_report,
    shown,
    with_interval,
)
from sparsight.evaluation.reform_eval.scores import scores_of

PLOT = "comparison.png"


class Evaluation(NamedTuple):
    """What was answered in one evaluation.

    Args:
        path: Where it was read.
        name: What it is called unless the user says otherwise.
        asked: What must be equal in evaluations that can be compared, by the names of its parts.
        score: Gives its scores, with a number of bootstrap draws.
    """

    path: Path
    name: str
    asked: Mapping[str, Any]
    score: Callable[[int], Scores]


def read_evaluation(path: str | Path) -> Evaluation:
    """A report of ReForm-Eval, ``scores_*.json`` of a validation or ``drawn_*.json``, or a folder with one of them.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It holds something else, there are several, or it is not finished.
    """
    path = Path(path)
    kinds = ("scores_*.json", f"{BEGINS}*.json") if path.is_dir() and not (path / FILE).is_file() else ()
    found = [file for kind in kinds for file in sorted(path.glob(kind))]
    if kinds and not found:
        raise FileNotFoundError(
            f"{path} holds no evaluation: give a folder with {FILE}, {' or '.join(kinds)}, or such a file (runs of "
            "training stand side by side in the page of `sparsight report RUN RUN`)"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(each.name for each in found)}: give one of these files")
    file = found[0] if found else path
    if file.name.startswith(BEGINS) and file.suffix == ".json":
        drawn = DrawnScores.load(file)
        name = _run_name(file)
        return Evaluation(file, name, drawn.asked(), lambda draws: drawn.estimates(resamples=draws))
    if file.name.startswith("scores_") and file.suffix == ".json":
        scores = TaskScores.load(file)
        if not scores.items:
            raise ValueError(f"{file} holds no answers")
        name = file.absolute().parent.name
        return Evaluation(file, name, {"items": scores.questions()}, lambda draws: scores.estimates(resamples=draws))
    report = read_report(path)
    if not report["complete"]:
        raise ValueError(
            f"{path} is not finished ({report['answered']} of {report['asked']}): run the same command again"
        )
    about, answers = report["about"], report["answers"]
    asked = {"tasks": about["tasks"], "protocol": about["protocol"]}
    name = str(about["model"]["name"])
    return Evaluation(path, name, asked, lambda draws: scores_of(answers, about["tasks"], resamples=draws))


def _run_name(file: Path) -> str:
    """The folder of a run, or what is above the folders that loggers make in it."""
    parents = (each.name for each in file.absolute().parents)
    return next((name for name in parents if name != "lightning_logs" and not name.startswith("version_")), file.name)


def compare_reports(
    paths: Sequence[str | Path], *, output: str | Path, names: Sequence[str] | None = None, resamples: int = 2000
) -> str:
    """Compare evaluations with the first of them; writes ``comparison.md``, ``.json`` and ``.png``.

    Args:
        paths: Reports, or the ``scores_*.json`` of validations; or folders with one of them.
        output: Folder for the comparison.
        names: What the runs are called; the names of their models, or of the folders of validations, if not given.
        resamples: Bootstrap draws.

    Returns:
        The table: every score, and behind it the difference to the first run with 95 % of its draws.

    Raises:
        FileNotFoundError: A report is missing.
        ValueError: There are fewer than two, they are not finished, or they answer other questions.
    """
    about, lines = _compared(paths, output=output, names=names, resamples=resamples)
    return f"{about}\n\n{markdown_table(lines)}"


def _compared(
    paths: Sequence[str | Path], *, output: str | Path, names: Sequence[str] | None, resamples: int
) -> tuple[str, list[dict[str, str]]]:
    """What the numbers are, and a line for every score."""
    if len(paths) < 2:
        raise ValueError("a comparison needs two or more reports")
    evaluations = [read_evaluation(path) for path in paths]
    labels = _labels(evaluations) if names is None else list(names)
    if len(labels) != len(evaluations) or len(set(labels)) < len(labels):
        raise ValueError(f"names are {labels}: give a different one for each of {len(evaluations)} reports")
    for each in evaluations:
        _check(each, evaluations[0])
    runs = {label: each.score(resamples) for label, each in zip(labels, evaluations, strict=True)}
    for each, scores in zip(evaluations, runs.values(), strict=True):
        _check_keys(each, scores, evaluations[0], next(iter(runs.values())))
    about, lines = _lines(runs)
    folder = Path(output)
    write_text(folder / "comparison.md", f"{about}\n\n{markdown_table(lines)}\n")
    write_text(folder / "comparison.json", json_text(_plain(runs)))
    if any(is_share(key) for key in next(iter(runs.values()))):
        plot_scores(runs, folder / PLOT)
    return about, lines


def _labels(evaluations: Sequence[Evaluation]) -> list[str]:
    names = [each.name for each in evaluations]
    if len(set(names)) == len(names):
        return names
    return [f"{number} {name}" for number, name in enumerate(names, start=1)]


def _check(ours: Evaluation, first: Evaluation) -> None:
    for name in {**first.asked, **ours.asked}:
        if ours.asked.get(name) != first.asked.get(name):
            raise ValueError(
                f"{ours.path} and {first.path} differ in {name}: only answers to the same questions can be compared, "
                "or images of the same noise and conditions"
            )


def _check_keys(ours: Evaluation, scores: Scores, first: Evaluation, others: Scores) -> None:
    if different := sorted({f"{key.name} {key.metric}" for key in scores.keys() ^ others.keys()}):
        raise ValueError(
            f"{ours.path} and {first.path} have other scores ({', '.join(different)}): only what was scored alike can "
            "be compared"
        )


def _lines(runs: Mapping[str, Scores]) -> tuple[str, list[dict[str, str]]]:
    first, *others = runs
    lines: list[dict[str, str]] = []
    for key, base in runs[first].items():
        line = {"": " ".join(part for part in (key.level, key.name) if part), "metric": key.metric, "by": key.method}
        line[first] = shown(base, key)
        line |= {label: f"{shown(runs[label][key], key)}; {_gap(runs[label][key], base, key)}" for label in others}
        lines.append(line)
    lines.sort(key=lambda line: LEVELS.index(line[""].partition(" ")[0]))
    about = f"In brackets 95 % of bootstrap draws; behind the semicolon the difference to {first}, drawn in pairs."
    return about, lines


def _for_a_terminal(lines: Sequence[Mapping[str, str]]) -> str:
    """A table for every measure, differences in columns of their own."""
    tables: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        row = {"": line[""]}
        for label in [key for key in line if key not in ("", "metric", "by")]:
            score, semicolon, gap = line[label].partition("; ")
            row |= {label: score} | ({f"{label}, difference": gap} if semicolon else {})
        tables[f"{line['metric']} by {line['by']}"].append(row)
    return "\n\n".join(f"{heading}\n{format_table(rows, width=WIDTH)}" for heading, rows in tables.items())


def _gap(ours: Estimate, base: Estimate, key: ScoreKey) -> str:
    found = paired(ours, base)
    return with_interval(found.difference, found.between, key, sign="+")


def _plain(runs: Mapping[str, Scores]) -> list[dict[str, Any]]:
    first = next(iter(runs))
    found = []
    for label, scores in runs.items():
        for key, each in scores.items():
            beside = paired(each, runs[first][key])
            found.append(
                {"run": label, **key._asdict(), **numbers(each), "difference": beside.difference}
                | {"difference_interval": beside.between, "share_of_draws_above": beside.higher}
                | {"kept": beside.kept, "kept_interval": beside.kept_between}
            )
    return found


def main(arguments: Sequence[str]) -> None:
    """The ``compare`` verb."""
    parser = argparse.ArgumentParser(
        prog="sparsight compare",
        description="Compare evaluations of the same questions, or of the same draws, with the first of them: "
        "differences with paired bootstrap intervals, as a table, JSON and a plot.",
    )
    parser.add_argument(
        "reports",
        nargs="+",
        help="two or more report.json, scores_*.json of validations or drawn_*.json of GenerationMetrics; or folders "
        "with one of them",
    )
    parser.add_argument("--output", required=True, help="folder for the comparison")
    parser.add_argument("--names", nargs="+", help="what the runs are called; their models or folders if not given")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws")
    given = parser.parse_args(arguments)
    try:
        about, lines = _compared(given.reports, output=given.output, names=given.names, resamples=given.resamples)
        print(f"{fill(about, WIDTH)}\n\n{_for_a_terminal(lines)}\n")
        plot = f", {PLOT}" if Path(given.output, PLOT).is_file() else ""
        print(f"Written to {given.output}: comparison.json, comparison.md{plot}")
        for line in _following(given.reports, given.output):
            print(line)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"sparsight: {error}") from error


def _following(reports: Sequence[str], output: str) -> list[str]:
    """What was trained or asked can be looked at beside each other, too."""
    folders = [path if path.is_dir() else path.parent for path in map(Path, reports)]
    if not all(any((folder / name).is_file() for name in ("config.yaml", FILE)) for folder in folders):
        return [f"Next: {output}/comparison.md is a table for pages, comparison.json has all numbers for programs"]
    page = shlex.join(["sparsight", "report", *map(str, folders), "--output", str(Path(output, "report.html"))])
    return ["Next:", f"  {page}"]
