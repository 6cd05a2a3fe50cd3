"""The region study's report: pairs of items and seeds, differences with intervals, tables of whatever is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.visual_region_report import pairs, resampled_scores, write_report
from sparsight.analysis.bootstrap import compare

ITEMS = 400


def record(right: float, *, arm: str, seed: int) -> dict[str, Any]:
    """A run whose items are hard or easy for all arms alike: it solves those below its skill."""
    hard = np.random.default_rng(seed).random(ITEMS)
    known = {"task": "naming", "visual": True, "answer": 0, "candidates": 4}
    items = [known | {"likeliest": int(h > right)} for h in hard]
    items += [{"task": "text_sums", "visual": False, "answer": 1, "candidates": 2, "likeliest": 0}]
    share = float(np.mean(hard <= right))
    accuracies = {"likelihood/visual": share, "likelihood/text": 0.5, "likelihood/naming": share}
    facts = {"layers": [0, 2], "removed": [], "step_seconds": 1.0, "peak_memory_mib": 1024.0}
    return facts | {"arm": arm, "seed": seed, "scores": {"accuracies": accuracies, "items": items}}


def visual(right: float) -> float:
    """Visual score of such a run with seed 0."""
    return float(record(right, arm="", seed=0)["scores"]["accuracies"]["likelihood/visual"])


def test_resamples_keep_items_and_seeds_paired() -> None:
    """Shared items cancel: a run against itself has no interval, and 2 points of skill show in 400 items."""
    ours, theirs = ([record(right, arm="a", seed=seed) for seed in (0, 1, 2)] for right in (0.72, 0.70))
    same = compare(*resampled_scores(pairs(ours, ours)))
    assert same.difference == (0.0, 0.0)
    low, high = compare(*resampled_scores(pairs(ours, theirs))).difference
    assert 0.0 < low < high < 0.05  # unpaired, the interval would be 3 points to either side


def test_pairs_are_of_equal_seeds() -> None:
    ours, theirs = ([record(0.5, arm="a", seed=seed) for seed in seeds] for seeds in ((0, 1, 2), (2, 0)))
    assert [(a["seed"], b["seed"]) for a, b in pairs(ours, theirs)] == [(0, 0), (2, 2)]
    untrained = [record(0.5, arm="untuned", seed=0) | {"seed": None}]
    assert [(a["seed"], b["seed"]) for a, b in pairs(untrained, theirs)] == [(None, 2), (None, 0)]


def test_report_of_what_is_finished(tmp_path: Path) -> None:
    runs = {"all/seed0": 0.6, "uniform/seed0": 0.7, "uniform/seed1": 0.7, "uniform/seed0/without4": 0.5}
    runs |= {"all/seed0/without4": 0.4, "uniform/seed0/without4_healed": 0.65}
    for name, right in runs.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        arm, seed = name.split("/")[:2]
        run = record(right, arm=arm, seed=int(seed.removeprefix("seed")))
        if name == "uniform/seed1":  # broken off between training and evaluation
            run |= {"step_seconds": None, "peak_memory_mib": None}
        (tmp_path / name / "record.json").write_text(json.dumps(run), encoding="utf-8")

    write_report(tmp_path, tmp_path / "report", arms=("all", "uniform", "top"), seeds=(0, 1, 2))

    tables = (tmp_path / "report" / "tables.md").read_text(encoding="utf-8")
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in tables.splitlines() if line}
    whole, without = (next(row for row in rows if row[0] == removed) for removed in ("0", "4"))
    (arm,) = (row for row in rows if row[0] == "uniform" and len(row) == 9)
    assert arm[2] == "2"  # seeds
    assert arm[5].startswith(f"{visual(0.7) / visual(0.6):.1%} (")
    assert arm[6].startswith(f"{(visual(0.7) - 0.25) / (visual(0.6) - 0.25):.1%} (")  # four candidates
    assert arm[7:] == ("1.00", "1.0")  # of the seed that was not broken off
    assert without[3].startswith(f"{100 * (visual(0.5) - visual(0.4)):+.1f} (")
    assert without[5:] == ("", "")  # the all-layer model is not healed yet: nothing to compare
    assert whole[3].startswith(f"{100 * (visual(0.7) - visual(0.6)):+.1f} (")  # tuning's own records, shared seeds
    assert (tmp_path / "report" / "pruning.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report" / "study.json").read_text(encoding="utf-8"))["arms"].keys() == {
        "all",
        "uniform",
    }


def test_nothing_finished(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to report"):
        write_report(tmp_path, tmp_path / "report", arms=("all",), seeds=(0,))
