"""The region study's driver: what its runs take over from each other."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.visual_region_study import removal_order


def test_layers_leave_in_the_order_of_a_run_that_lost_as_many_or_more(tmp_path: Path) -> None:
    def finished(name: str, order: list[str]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(json.dumps({"order": order}), encoding="utf-8")

    assert removal_order(tmp_path, 4) == "score"
    finished("without3", ["layers.5", "layers.2", "layers.9"])
    assert removal_order(tmp_path, 4) == "score"  # the fourth is not known
    finished("without6", ["layers.5", "layers.2", "layers.9", "layers.1", "layers.8", "layers.4"])
    assert removal_order(tmp_path, 4)[:4] == ["layers.5", "layers.2", "layers.9", "layers.1"]
    assert removal_order(tmp_path, 3) == ["layers.5", "layers.2", "layers.9"]
