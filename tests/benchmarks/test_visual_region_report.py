"""The region study's report: pairs of items and seeds, differences with intervals, tables of whatever is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.visual_region_report import pairs, resampled_scores, write_report
from sparsight.common.bootstrap import compare

ITEMS = 400
HALF = 200


def record(right: float, *, arm: str, seed: int) -> dict[str, Any]:
    """A run whose items are hard or easy for all arms alike: it solves those below its skill."""
    hard = np.random.default_rng(seed).random(ITEMS)
    known = {"log_likelihood": -1.0, "tokens": 1, "likeliest_by_token": 0}
    naming = known | {"task": "naming", "visual": True, "answer": 0, "candidates": 4}
    items = [naming | {"index": index, "likeliest": int(h > right)} for index, h in enumerate(hard)]
    sums = known | {"task": "text_sums", "visual": False, "answer": 1, "candidates": 2}
    items += [sums | {"index": ITEMS + n, "likeliest": int(n % 2 == 0)} for n in range(4)]
    share = float(np.mean(hard <= right))
    accuracies = {"likelihood/visual": share, "likelihood/text": 0.5, "likelihood/naming": share}
    facts = {"layers": [0, 2], "removed": [], "step_seconds": 1.0, "peak_memory_mib": 1024.0}
    return facts | {"arm": arm, "seed": seed, "scores": {"accuracies": accuracies, "items": items}}


def visual(right: float, items: int = ITEMS, seed: int = 0) -> float:
    """Visual score of such a run over its first items."""
    return float(np.mean(np.random.default_rng(seed).random(ITEMS)[:items] <= right))


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
    runs |= {"all/seed0/without4": 0.4, "uniform/seed0/without4_healed": 0.65, "untuned/seed0": 0.3}
    for name, right in runs.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        arm, seed = name.split("/")[:2]
        run = record(right, arm=arm, seed=int(seed.removeprefix("seed")))
        if name == "uniform/seed1":  # broken off between training and evaluation
            run |= {"step_seconds": None, "peak_memory_mib": None}
        if arm == "untuned":
            run |= {"seed": None, "step_seconds": None, "peak_memory_mib": None}
        if "without" in name:  # a share of the items is asked
            run["scores"]["items"] = run["scores"]["items"][:HALF]
        (tmp_path / name / "record.json").write_text(json.dumps(run), encoding="utf-8")

    write_report(tmp_path, tmp_path / "report", arms=("untuned", "all", "uniform", "top"), seeds=(0, 1, 2))

    tables = (tmp_path / "report" / "tables.md").read_text(encoding="utf-8")
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in tables.splitlines() if line}
    whole, without = (next(row for row in rows if row[0] == removed) for removed in ("0", "4"))
    (arm,) = (row for row in rows if row[0] == "uniform" and len(row) == 9)
    assert arm[2] == "2"  # seeds
    assert arm[5].startswith(f"{visual(0.7) / visual(0.6):.1%} (")
    assert arm[6].startswith(f"{(visual(0.7) - 0.25) / (visual(0.6) - 0.25):.1%} (")  # four candidates
    assert arm[7:] == ("1.00", "1.0")  # of the seed that was not broken off
    assert without[3].startswith(f"{100 * (visual(0.5, HALF) - visual(0.4, HALF)):+.1f} (")
    assert without[5:] == ("", "")  # the all-layer model is not healed yet: nothing to compare
    assert whole[3].startswith(f"{100 * (visual(0.7, HALF) - visual(0.6, HALF)):+.1f} (")  # tuning's, on shared items
    (gained,) = (row for row in rows if row[0] == "uniform" and len(row) == 3)
    gains = [visual(0.7, seed=seed) - visual(0.3) for seed in (0, 1)]  # what was not trained goes with every seed
    assert gained[1].startswith(f"{100 * np.mean(gains):+.1f} (")
    assert gained[2] == "+0.0 (+0.0 to +0.0)"  # text: the same items right
    assert (tmp_path / "report" / "pruning.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report" / "study.json").read_text(encoding="utf-8"))["arms"].keys() == {
        "untuned",
        "all",
        "uniform",
    }


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "all" / "seed0" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"arm": "all", "sco', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"seed0.record\.json is damaged .*remove it"):
        write_report(tmp_path, tmp_path / "report", arms=("all",), seeds=(0,))


def test_nothing_finished(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to report"):
        write_report(tmp_path, tmp_path / "report", arms=("all",), seeds=(0,))
