"""Comparisons of runs whose answers are known: draws belong together, and what is not defined is a dash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest

from sparsight.evaluation.compare import compare_reports, main
from sparsight.evaluation.drawn_scores import DrawnScores
from sparsight.evaluation.questions.task_scores import Item, TaskScores
from tests.tiny_evaluation import report


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


def test_the_command_prints_tables_that_fit_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(report(tmp_path / name, [True] * 8)) for name in ("a_base_with_a_long_name", "another_one")]
    for folder in folders:
        Path(folder, "config.yaml").touch()  # as `evaluate` leaves it
    main([*folders, "--output", str(tmp_path / "out"), "--resamples", "50"])
    *table, blank, written, _, following = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= 80 and blank == ""
    assert written == f"Written to {tmp_path / 'out'}: comparison.json, comparison.md, comparison.png"
    assert following == f"  sparsight report {' '.join(folders)} --output {tmp_path / 'out'}/report.html"
    assert "accuracy by likelihood" in table and any("another_one, difference" in line for line in table)
    assert sum("+0.0 (+0.0 to +0.0)" in line for line in table) >= 1


def validated(folder: Path, right: Sequence[bool], **changes: Any) -> Path:
    """The scores of a validation that is right or wrong in these items, of which every other one has an image."""
    scores = TaskScores()
    for index, each in enumerate(right):
        chosen = {"likeliest": int(not each), "likeliest_by_token": 0, "generated": "", "generated_right": each}
        of = {"index": index, "task": ("naming", "capitals")[index % 2], "visual": index % 2 == 0, "answer": 0}
        scores.add([Item(**{**of, "candidates": 2, "log_likelihood": -1.0, "tokens": 1, **chosen, **changes})])
    scores.save(folder / "scores_val.json")
    return folder


def test_validations_are_compared_like_reports(tmp_path: Path) -> None:
    right = (np.random.default_rng(0).random(80) < 0.5).tolist()
    right[8] = False
    folders = [validated(tmp_path / "before", right)]
    folders.append(validated(tmp_path / "after", [each or number == 8 for number, each in enumerate(right)]))
    text = compare_reports([folders[0], folders[1] / "scores_val.json"], output=tmp_path / "out", resamples=500)
    assert "| group visual |" in text and "before" in text and "after" in text
    found = {
        (entry["run"], entry["method"], entry["level"], entry["name"], entry["metric"]): entry
        for entry in read_strictly(tmp_path / "out" / "comparison.json")
    }
    for method in ("likelihood", "generation"):
        task = found["after", method, "task", "naming", "accuracy"]
        assert task["difference"] == pytest.approx(1 / 40) and task["difference_interval"][0] == 0
        group = found["after", method, "group", "visual", "accuracy"]
        assert (group["value"], group["kept"]) == (task["value"], pytest.approx(task["value"] * 40 / sum(right[::2])))
        assert found["after", method, "group", "text", "accuracy"]["difference"] == 0
    assert found["after", "likelihood", "task", "naming", "accuracy_by_token"]["value"] == 1
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_only_validations_of_the_same_items_are_compared(tmp_path: Path) -> None:
    first = validated(tmp_path / "first", [True, False])
    others = [validated(tmp_path / "more", [True] * 3), validated(tmp_path / "other", [True, False], answer=1)]
    for other in (*others, report(tmp_path / "suite", [True, False])):
        with pytest.raises(ValueError, match="differ in items: only answers to the same questions can be compared"):
            compare_reports([first, other], output=tmp_path / "out")
    (first / "scores_test.json").write_bytes((first / "scores_val.json").read_bytes())
    with pytest.raises(ValueError, match=r"holds scores_test\.json and scores_val\.json: give one of these files"):
        compare_reports([first, others[0]], output=tmp_path / "out")


def drawn(folder: Path, values: Sequence[float], *, first: object = "a bag", seed: int = 0) -> Path:
    """A run's file of five samples."""
    folder.mkdir(parents=True)
    conditions = {number: first if number == 0 else number for number in range(len(values))}
    scores = {"clip_score_5": ("mean", list(values)), "rmse_5": ("root mean", [value**2 for value in values])}
    how = {"seed": seed, "samples": len(values), "compare_size": None}
    DrawnScores(how, conditions, cast(Any, scores)).save(folder / "drawn_test_step_0000004.json")
    return folder


def test_draws_of_two_runs_are_compared_in_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples differ by far more than the runs do; only pairs can tell."""
    base = [0.1, 4.0, 9.0, 2.0, 7.0]
    folders = [drawn(tmp_path / "base" / "lightning_logs" / "version_0", base)]
    folders.append(drawn(tmp_path / "student" / "version_3", [value + 0.25 for value in base]))
    main([*map(str, folders), "--output", str(tmp_path / "out"), "--resamples", "300"])
    said = capsys.readouterr().out
    assert "clip_score_5 by drawing" in said and "0.2500 (+0.2500 to +0.2500)" in said and "comparison.png" not in said
    entries = read_strictly(tmp_path / "out" / "comparison.json")
    assert [(entry["run"], entry["metric"]) for entry in entries] == [
        (run, metric) for run in ("base", "student") for metric in ("clip_score_5", "rmse_5")
    ]
    score, rmse = entries[2:]
    assert score["value"] == pytest.approx(np.mean(base) + 0.25) and score["difference"] == pytest.approx(0.25)
    assert score["low"] < score["value"] - 1 and score["share_of_draws_above"] == 1
    assert rmse["value"] == pytest.approx(np.sqrt(np.mean(np.square(base) + 0.5 * np.array(base) + 0.0625)))


def test_only_draws_of_the_same_noise_and_conditions_are_compared(tmp_path: Path) -> None:
    first = drawn(tmp_path / "first", [1.0, 2.0])
    for name, options in (("word", {"first": "a coat"}), ("seed", {"seed": 1})):
        other = drawn(tmp_path / name, [1.0, 2.0], **cast(Any, options))
        with pytest.raises(ValueError, match="or images of the same noise and conditions"):
            compare_reports([first, other], output=tmp_path / "out")
    damaged = tmp_path / "drawn_x.json"
    for text in ("{", '{"version": 1}', '{"version": 2, "samples": [], "values": {}, "drawn": {}}'):
        damaged.write_text(text)
        with pytest.raises(ValueError, match=r"drawn_x\.json"):
            compare_reports([first, damaged], output=tmp_path / "out")
