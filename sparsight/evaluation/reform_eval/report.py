"""What is left of an evaluation: one JSON file, a table and a plot."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.errors import reason_of
from sparsight.common.tables import WIDTH, format_table, json_text, markdown_table
from sparsight.common.text import read_json
from sparsight.evaluation.drawn_scores import METHOD
from sparsight.evaluation.questions.rules import POINTS
from sparsight.evaluation.questions.scores import Estimate, ScoreKey
from sparsight.evaluation.reform_eval.scores import headline
from sparsight.evaluation.reform_eval.taxonomy import CAPTIONS

VERSION = 1
FILE = "report.json"
NO_SHARES = (
    *("cider", "instability", "turn_correlation", "turn_slope"),
    *("mme_score", "mme_perception", "mme_cognition"),
)
_LISTED = 20  # unusable samples of a task in the table's file
LEVELS = ("all", "group", "ability", "dimension", "task", "category")
Scores = Mapping[ScoreKey, Estimate]


def write_report(
    folder: Path,
    *,
    about: Mapping[str, Any],
    extra: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    scores: Scores,
) -> str:
    """Write ``report.json``, ``report.md`` and ``dimensions.png``.

    Args:
        folder: Where they go.
        about: What all answers depend on: model, data, protocol.
        extra: What else is worth keeping, such as prompts and hardware.
        answers: Plain data of every unit.
        scores: Their scores.

    Returns:
        The table, as text for a terminal.
    """
    listed = [key._asdict() | numbers(each) for key, each in scores.items()]
    chances = chances_of(answers)
    lines = score_lines(listed, about["tasks"], chances)
    content = {"version": VERSION, "about": about, **extra, "scores": listed, "chances": chances}
    content |= {"answers": list(answers)}
    write_text(folder / FILE, json_text(content))
    left = "".join(_left_out(name, reasons) for name, reasons in extra.get("left_out", {}).items())
    write_text(folder / "report.md", f"{_title(about, extra)}\n\n{markdown_table(lines)}\n{left}")
    plot_scores({about["model"]["name"]: scores}, folder / "dimensions.png")
    return format_table(lines, width=WIDTH)


def written_to(folder: Path) -> str:
    """What a reader is told at the end: files, and the command that reads them."""
    command = shlex.join(["sparsight", "compare", str(folder)])
    files = "report.json, report.md, dimensions.png"
    return f"Written to {folder}: {files}\nNext, with the report of another model:\n  {command} OTHER --output compared"


def read_report(path: str | Path) -> dict[str, Any]:
    """A report, from its file or its folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It holds something else.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no evaluation at {path}; give a folder with {FILE}, or such a file")
    try:
        content: dict[str, Any] = read_json(file)
        if content["version"] != VERSION or not content["answers"]:
            raise ValueError(f"version {content['version']}, {len(content['answers'])} answers")
        _ = content["about"]["tasks"], content["about"]["model"]["name"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no evaluation of version {VERSION}: {reason_of(error)}") from error
    return content


def chances_of(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share that blind guesses get right, of every task whose questions have options."""
    shares: dict[str, list[float]] = {}
    for answer in answers:
        if "options" in answer:
            shares.setdefault(answer["task"], []).append(1 / len(answer["options"]))
    return {task: sum(each) / len(each) for task, each in shares.items()}


def score_lines(
    listed: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], chances: Mapping[str, float]
) -> list[dict[str, str]]:
    """A line for every task, dimension and ability, with a column for every method and metric.

    Args:
        listed: Scores, as a report has them: the parts of their keys, their values and the ends of their intervals.
        tasks: What was asked.
        chances: Of tasks, as ``chances_of`` gives them.
    """
    keys = [ScoreKey(*(each[part] for part in ScoreKey._fields)) for each in listed]
    samples = {task["name"]: task["samples"] for task in tasks}
    columns = list(dict.fromkeys((key.method, _shown_metric(key, tasks)) for key in keys))
    lines = []
    for level in LEVELS:
        for name in dict.fromkeys(key.name for key in keys if key.level == level):
            of_task = level == "task"
            line = {"": f"{level} {name}".strip(), "samples": str(samples[name]) if of_task else ""}
            line["chance"] = f"{100 * chances[name]:.1f}" if of_task and name in chances else ""
            line |= {_column(metric, method): "" for method, metric in columns}
            for key, each in zip(keys, listed, strict=True):
                if (key.level, key.name) == (level, name):
                    ends = None if each["low"] is None else (each["low"], each["high"])
                    line[_column(_shown_metric(key, tasks), key.method)] = with_interval(each["value"], ends, key)
            lines.append(line)
    return lines


def _column(metric: str, method: str) -> str:
    return f"{metric.replace('_', ' ')} ({method})"


def _shown_metric(key: ScoreKey, tasks: Sequence[Mapping[str, Any]]) -> str:
    mains = {task["name"]: headline(task, key.method) for task in tasks}
    # a category's name begins with that of its task, of which another task's may be the beginning
    of = max((name for name in mains if f"{key.name}: ".startswith(f"{name}: ")), key=len, default=None)
    main = key.level not in ("task", "category") or (of is not None and key.metric == mains[of])
    return "score" if main else key.metric


def is_share(key: ScoreKey) -> bool:
    """Whether a score lies between 0 and 1, to be shown in per cent."""
    return (
        key.method != METHOD
        and key.metric not in NO_SHARES
        and not key.metric.endswith(POINTS)
        and key.name != CAPTIONS
    )


def shown(estimate: Estimate, key: ScoreKey) -> str:
    """A score with its interval; shares in per cent."""
    return with_interval(estimate.value, estimate.interval, key)


def with_interval(value: float | None, ends: Sequence[float] | None, key: ScoreKey, *, sign: str = "") -> str:
    """A number in the unit of a score, and between what it lies; a dash where that is not defined.

    Args:
        value: The number.
        ends: Of its interval.
        key: What score it belongs to.
        sign: ``+`` writes one before positive numbers, too.
    """
    if value is None or ends is None or np.isnan([value, *ends]).any():
        return "-"
    unit, digits = (100, 1) if is_share(key) else (1, 4 if key.method == METHOD else 2)
    middle, low, high = (f"{unit * number:{sign}.{digits}f}" for number in (value, *ends))
    return f"{middle} ({low} to {high})"


def plot_scores(runs: Mapping[str, Scores], path: Path) -> None:
    """Bars of every dimension that is a share, with 95 % intervals; runs beside each other, a panel a method.

    Scores that have no dimensions, of a validation, have a bar for every task.
    """
    keys = list(dict.fromkeys(key for each in runs.values() for key in each))
    level, metric = ("dimension", "score") if any(key.level == "dimension" for key in keys) else ("task", "accuracy")
    found = {
        method: [k.name for k in keys if (k.method, k.level, k.metric) == (method, level, metric) and is_share(k)]
        for method in dict.fromkeys(key.method for key in keys)
    }
    height = 0.28 * max(map(len, found.values())) * (len(runs) + 1) + 1.2
    figure = Figure(figsize=(5.2 * len(found) + 1.5, height), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (method, names) in zip(panels, found.items(), strict=True):
        for number, (label, scores) in enumerate(runs.items()):
            estimates = [scores.get(ScoreKey(method, level, name, metric)) for name in names]
            places = [place + 0.8 * (number - (len(runs) - 1) / 2) / len(runs) for place in range(len(names))]
            drawn = [(place, each) for place, each in zip(places, estimates, strict=True) if each is not None]
            values = [100 * each.value for _, each in drawn]
            ends_2N = 100 * np.array([np.abs(np.subtract(each.interval, each.value)) for _, each in drawn]).T
            panel.barh([p for p, _ in drawn], values, 0.75 / len(runs), xerr=ends_2N, label=label, error_kw={"lw": 0.8})
        panel.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        panel.invert_yaxis()
        panel.set_xlim(0, 100)
        panel.set_xlabel(f"score by {method} in % (bars: 95 % of bootstrap draws)")
    if len(runs) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    write_whole(path, lambda part: figure.savefig(part, dpi=130))


def numbers(estimate: Estimate) -> dict[str, float | None]:
    """Score and ends of its interval; none where it is not defined."""
    named = zip(("value", "low", "high"), (estimate.value, *estimate.interval), strict=True)
    return {name: _defined(number) for name, number in named}


def _defined(number: float) -> float | None:
    """A number as JSON knows it, which has no word for one that is not defined."""
    return None if np.isnan(number) else float(number)


def _left_out(task: str, reasons: Sequence[str]) -> str:
    listed = "\n".join(f"- {' '.join(reason.split())}" for reason in reasons[:_LISTED])
    more = f"\n- and {len(reasons) - _LISTED} more, see {FILE}" if len(reasons) > _LISTED else ""
    return f"\nLeft out of {task}, as they cannot be used: {len(reasons)}\n\n{listed}{more}\n"


def _title(about: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    protocol = about["protocol"]
    done = "" if extra["complete"] else f" **Not finished: {extra['answered']} of {extra['asked']} answers.**"
    return (
        f"{about['model']['name']}: {protocol['runs']} run(s) a sample, seed {protocol['seed']}, "
        f"{extra['environment']['date'][:10]}. Shares in %, in brackets 95 % of bootstrap draws.{done}"
    )
