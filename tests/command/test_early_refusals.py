"""Callbacks that stand twice in a configuration, and devices that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_told_with_the_remedy(tmp_path: Path, accelerator: str) -> None:
    arguments = ["fit", "--config", str(distillation_config(tmp_path)), "--trainer.accelerator", accelerator]
    with pytest.raises(
        SystemExit, match=f"trainer.accelerator is '{accelerator}', .*none on this machine: leave it out"
    ):
        main(arguments)
