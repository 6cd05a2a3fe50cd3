"""Removals of the region study: orders with spacing, what goes on from rows, and a tiny model that loses layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import region_removal
from benchmarks.region_arms import ARMS
from benchmarks.region_data import CHANCE
from benchmarks.region_orders import CRITERIA, MOST, candidates, drawn_order, next_layer
from benchmarks.region_removal import HEALINGS, NONE, removals, row_key
from benchmarks.region_rows import Budget, Rows
from benchmarks.region_study import Study
from sparsight.lvlm.surgery.selection import Uniform
from tests.tiny_tuning import STAGE, tuning_config

DEPTH = 30


def apart(layers: list[int]) -> bool:
    return all(abs(one - other) > 1 for one in layers for other in layers if one != other)


def test_layers_leave_by_value_and_never_beside_each_other() -> None:
    values = [9.0, 5.0, 1.0, 2.0, 3.0, 8.0, 7.0, 9.0]
    taken: list[int] = []
    for _ in range(3):
        taken.append(next_layer(values, taken, allowed=range(1, 7), most=3))
    assert taken == [2, 4, 6]  # 3 is lower than 4, and a neighbour of 2
    assert next_layer(values, [], allowed=[2, 3, 4], most=2) == 2
    assert next_layer([9, 9, 5, 1, 5], [], allowed=[2, 3, 4], most=2) == 2, "3 would leave no room for a second"


def test_drawn_orders_differ_and_keep_ends_and_distance() -> None:
    orders = [drawn_order(draw, DEPTH) for draw in range(5)]
    assert len({tuple(order) for order in orders}) == 5 and orders[1] == drawn_order(1, DEPTH)
    assert all(len(order) == MOST and apart(order) and not {0, DEPTH - 1} & set(order) for order in orders)


def test_the_region_stays_by_its_own_criterion_alone() -> None:
    region = set(Uniform(count=8).select(DEPTH))
    assert not region & set(candidates("region", DEPTH)) and region & set(candidates("angle", DEPTH))
    assert set(candidates("angle", DEPTH)) == set(range(1, DEPTH - 1))


class Done(Study):
    """A study that notes what it would do, and adds the rows."""

    def __init__(self, root: Path, rows: Rows) -> None:
        super().__init__(root, rows, Budget(None))
        self.noted: list[tuple[str, Any]] = []

    def tuned(self, arm: str, *, seed: int) -> bool:
        return True

    def alone(self, kind: str, work: Any, *arguments: Any, **options: Any) -> bool:
        counts = options["removed"] if isinstance(options["removed"], list) else [options["removed"]]
        healing = options.get("healing", NONE)
        self.noted.append((options["criterion"], counts))
        for count in counts:
            self.rows.add("removed", row_key(options["arm"], options["seed"], options["criterion"], count, healing))
        return True


def test_removals_go_on_from_rows(tmp_path: Path) -> None:
    study = Done(tmp_path, Rows(tmp_path))
    options: dict[str, Any] = {"seed": 1, "criteria": ["angle", "loss"], "removed": [0, 2, 4], "healings": [NONE]}
    assert removals(study, "all", **options)
    assert study.noted == [("angle", [0, 2, 4]), ("loss", [2, 4])], "without a removal no criterion tells"
    assert removals(study, "all", **(options | {"removed": [0, 2, 3, 4]}))
    assert study.noted[2:] == [("angle", [3]), ("loss", [3])]
    assert removals(study, "all", **(options | {"healings": ["hidden"], "criteria": ["angle"]}))
    assert study.noted[4:] == [("angle", [2]), ("angle", [4])], "what lost nothing has nothing to heal"


def test_a_model_that_is_not_here_needs_its_rate(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    counts = {name: {"counts": True} for name in CHANCE}
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": counts}), encoding="utf-8")
    with pytest.raises(SystemExit, match="not all of its rates were run; `--only rates --arms lora_all` first"):
        Study(tmp_path / "root", rows, Budget(0)).tuned("lora_all", seed=1)
    with pytest.raises(SystemExit, match="is not known: --healings none first"):
        region_removal.heal(rows, tmp_path, tmp_path, arm="all", seed=1, criterion="angle", removed=2, healing="hidden")
    assert {arm for arm in ARMS if ARMS[arm].loses} == {"all", "uniform", "lora_all", "lora_uniform"}


@pytest.mark.slow
def test_layers_leave_a_tiny_model_and_the_rest_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tuning_config(tmp_path)
    base = tmp_path / "base"

    def tiny_options(tuned: Path, arm: str) -> list[str]:
        return ["--config", str(config), "--model.base", str(tuned)]

    def tiny_stage(train: list[str], **_: Any) -> list[str]:
        return ["--model.stages", json.dumps([STAGE | {"train": train}])]

    monkeypatch.setattr(region_removal, "options_of", tiny_options)
    monkeypatch.setattr(region_removal, "stage", tiny_stage)
    monkeypatch.setattr(region_removal, "STEPS", 4)
    monkeypatch.setattr("benchmarks.region_orders.MOST", 2)
    rows, facts = Rows(tmp_path / "rows"), {"arm": "all", "seed": 1}
    for criterion in ("angle", "loss", "random0"):
        folder = tmp_path / criterion
        removed = [0, 1, 2]
        region_removal.remove(rows, base, folder, criterion=criterion, removed=removed, **facts)  # type: ignore[arg-type]
    orders = rows.read("orders")
    assert len(orders) == 3 and all(apart(row["order"]) and len(row["order"]) == 2 for row in orders.values())
    found = rows.read("removed")
    assert [len(row["layers"]) for row in found.values()] == [0, 1, 2, 1, 2, 1, 2]
    assert {sum(map(len, row["right"].values())) for row in found.values()} == {11}, "all items, not the first batch"
    for healing in ("answers", "logits_layers"):
        options: dict[str, Any] = {"criterion": "angle", "removed": 2, "healing": healing}
        region_removal.heal(rows, base, tmp_path / healing, **options, **facts)
        row = rows.read("removed")[row_key("all", 1, "angle", 2, healing)]
        assert row["layers"] == sorted(orders["all 1 angle"]["order"])
    assert set(HEALINGS) >= {"answers", "hidden", "logits", "layers"} and len(CRITERIA) == 8
