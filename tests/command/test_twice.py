"""Callbacks that stand twice in a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsight.command.cli import main
from tests.tiny_distillation import distillation_config

EMA, GRID = (f'{{"class_path": "callbacks.{name}"}}' for name in ("TrainableEMA", "SampleGrid"))


def test_one_that_keeps_a_state_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distillation_config(tmp_path)
    monkeypatch.setattr("sparsight.diffusion.model.diffusion_model.DiffusionModel.from_pretrained", None)
    arguments = ["fit", "--config", str(config), "--trainer.callbacks", f"[{EMA}, {GRID}, {EMA}]"]
    with pytest.raises(
        SystemExit, match=r"^sparsight: .*callbacks has TrainableEMA 2 times, as entries 0 and 2: leave"
    ):
        main(arguments)
