"""Tables of the region study, from rows whose outcome is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.region_choice import decide_tasks, sweep_key
from benchmarks.region_data import CHANCE
from benchmarks.region_removal import row_key
from benchmarks.region_report import arm_lines, difference, kept, rate_lines, removal_lines, tables
from benchmarks.region_rows import Rows


def drawn(share: float, seed: int, total: int = 200) -> str:
    return "".join(map(str, (np.random.default_rng(seed).random(total) < share).astype(int)))


def arm_row(arm: str, seed: int, share: float) -> dict[str, Any]:
    right = {"naming": drawn(share, seed), "choice": drawn(share, seed + 50), "text_sums": drawn(0.5, seed)}
    return {"arm": arm, "rate": 1e-4, "seed": seed, "right": {"arms": right}}


def test_an_arm_that_is_right_as_often_keeps_all_and_a_better_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.region_report.RESAMPLES", 300)
    rows = {
        f"{arm} {seed}": arm_row(arm, seed, share)
        for arm, share in (("all", 0.6), ("uniform", 0.8))
        for seed in (1, 2, 3)
    }
    rows["untuned"] = arm_row("untuned", 9, 0.3) | {"seed": None}
    start, reference, other = arm_lines(rows)
    assert start["seeds"] == "" and start["seen, less all layers (95 % interval)"].startswith("-"), (
        "pairs with all seeds"
    )
    assert reference["seeds"] == "3" and reference["kept above chance (95 % interval)"] == ""
    both = [(rows[f"uniform {seed}"], rows[f"all {seed}"]) for seed in (1, 2, 3)]
    tasks = ["naming", "choice"]
    points, low, high = (
        float(part)
        for part in difference(both, "arms", tasks).replace("(", "").replace(")", "").replace("to ", "").split()
    )
    exact = np.mean([[a == "1" for row, _ in both for t in tasks for a in row["right"]["arms"][t]]]) - np.mean(
        [[a == "1" for _, row in both for t in tasks for a in row["right"]["arms"][t]]]
    )
    assert points == pytest.approx(100 * exact, abs=0.06) and 10 < low < points < high < 30
    same = [(row, row) for row, _ in both]
    assert difference(same, "arms", tasks) == "+0.0 (+0.0 to +0.0)"
    assert kept(same, "arms", tasks) == "100.0% (100.0% to 100.0%)"
    assert other["kept above chance (95 % interval)"].startswith("1") and other["text"] == reference["text"]


def test_drawn_orders_are_put_together_and_rates_stand_in_their_order(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    with pytest.raises(SystemExit, match="holds no rows"):
        tables(rows)
    for rate in (4.5e-4, 5e-5, 1.5e-4):
        right = {split: {task: drawn(0.7, 3) for task in CHANCE} for split in ("rates", "tasks")}
        rows.add("rates", sweep_key("all", rate), arm="all", rate=rate, right=right)
    rows.add("rates", "untuned", arm="untuned", seed=None, right={"rates": {"naming": "10"}})
    found = rate_lines(rows.read("rates"))
    assert [line["rate"] for line in found] == ["", "5e-05", "0.00015", "0.00045"]
    assert found[0]["above chance"] == "44.4%"
    for criterion, share in (("random0", 0.2), ("random1", 0.4), ("angle", 0.6)):
        for count in (0, 2):
            facts: dict[str, Any] = {"arm": "all", "seed": 1, "criterion": criterion, "removed": count}
            right = {"naming": "1" * round(10 * share) + "0" * round(10 - 10 * share)}
            key = row_key("all", 1, criterion, count, "none")
            rows.add("removed", key, **facts, healing="none", right=right)
    lines = {line["criterion"]: line for line in removal_lines(rows.read("removed"))}
    assert lines["random"]["without 2"] == "30.0% (20.0% to 40.0%)" and lines["angle"]["without 2"] == "60.0%"
    assert lines["any"]["without 0"] == "60.0%" and lines["angle"]["without 0"] == ""
    assert decide_tasks(rows, (5e-5, 1.5e-4, 4.5e-4)) is not None
    assert len(tables(rows)) == 3
