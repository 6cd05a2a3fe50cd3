"""Comparisons of runs whose answers are known: draws belong together, and what is not defined is a dash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from sparsight.evaluation.reform_eval.compare import compare_reports
from sparsight.evaluation.reform_eval.report import write_report
from sparsight.evaluation.reform_eval.scores import scores_of
from tests.tiny_evaluation import TASK, weighed


def report(folder: Path, right: Sequence[bool], *, turns: int = 1) -> Path:
    """The report of a model that is right or wrong in these samples."""
    tasks = [TASK | {"samples": len(right)}]
    talks = [{"turn": n % turns, "dialogue": str(n // turns)} if turns > 1 else {} for n in range(len(right))]
    answers = [weighed(str(n), right=each, **talks[n]) for n, each in enumerate(right)]
    about: dict[str, Any] = {"model": {"name": folder.name}, "tasks": tasks, "protocol": {"runs": 1, "seed": 0}}
    extra = {"complete": True, "environment": {"date": "2026-01-01"}}
    scores = scores_of(answers, tasks, resamples=200)
    write_report(folder, about=about, extra=extra, answers=answers, scores=scores)
    return folder


def read_strictly(path: Path) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_difference_in_one_sample_moves_only_draws_that_hold_it(tmp_path: Path) -> None:
    """Of 40 samples one differs; were the draws not the same, both ends would lie far out."""
    right = (np.random.default_rng(0).random(40) < 0.5).tolist()
    right[7] = False
    other = [each or number == 7 for number, each in enumerate(right)]
    folders = [report(tmp_path / "base", right), report(tmp_path / "other", other)]
    compare_reports(folders, output=tmp_path / "out", resamples=500)
    (entry,) = [
        entry
        for entry in read_strictly(tmp_path / "out" / "comparison.json")
        if (entry["run"], entry["level"], entry["metric"]) == ("other", "task", "accuracy")
    ]
    assert entry["difference"] == pytest.approx(1 / 40)
    low, high = entry["difference_interval"]
    assert low == 0 and high <= 5 / 40


def test_what_is_not_defined_is_a_dash_and_no_number(tmp_path: Path) -> None:
    """The correlation with turns has no value where all turns are answered equally well."""
    folders = [report(tmp_path / name, [True] * 8, turns=2) for name in ("base", "other")]
    text = compare_reports(folders, output=tmp_path / "out", resamples=200)
    assert "nan" not in text and "| talk |" not in text
    (line,) = [line for line in text.splitlines() if "turn_correlation" in line]
    assert line.split("|")[-2].strip() == "-; -"
    assert "nan" not in (tmp_path / "base" / "report.md").read_text()
    read_strictly(tmp_path / "base" / "report.json")
    (entry,) = [
        entry
        for entry in read_strictly(tmp_path / "out" / "comparison.json")
        if (entry["run"], entry["metric"]) == ("other", "turn_correlation")
    ]
    names = ("value", "low", "difference", "difference_interval", "share_of_draws_above", "kept", "kept_interval")
    assert [entry[name] for name in names] == [None] * len(names)
