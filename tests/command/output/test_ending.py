"""What a verb says at its end of what it wrote."""

from __future__ import annotations

from pathlib import Path

from sparsight.command.output.ending import after_check, ending
from sparsight.command.trainer import SparsightTrainer


def test_files_are_named_where_there_is_no_logger_and_folders_of_others_are_not(tmp_path: Path) -> None:
    trainer = SparsightTrainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    assert ending(trainer, "validate", exported=False) == []
    (tmp_path / "scores_val.json").write_text("{}")
    (tmp_path / ".answers.lock").touch()
    (tmp_path / "another_run").mkdir()
    assert ending(trainer, "validate", exported=False) == [f"Written to {tmp_path}: scores_val.json"]
    assert ending(trainer, "export", exported=False) == [], "tells that itself"


def test_check_leads_to_the_run_that_it_tried() -> None:
    tried = ["check", "--config", "experiment/quickstart", "--output", "looked at", "--model.mixer", "my blocks.Ripple"]
    assert after_check(tried) == [
        "Next:",
        "  sparsight fit --config experiment/quickstart --model.mixer 'my blocks.Ripple'",
    ]
    assert after_check(["check", "--output=x", "--config", "a"]) == ["Next:", "  sparsight fit --config a"]
