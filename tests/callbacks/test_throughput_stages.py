"""Measured step times are told stage by stage, next to what was predicted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import throughput
from sparsight.command.cli import main
from tests.tiny_clock import Clock
from tests.tiny_tuning import STAGE, tuning_config, with_callback

CLOCK = Clock()


class Work(Callback):
    """Lets a step of the projector's stage take 3 seconds, and one of the next stage 1."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        CLOCK.sleep(3.0 if trainer.global_step < 8 else 1.0)


def test_every_stage_is_told_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "time", CLOCK)
    stages = [STAGE | {"steps": 8, "train": ["projector"]}, STAGE]  # the first ends between two logging steps
    config = with_callback(tuning_config(tmp_path, stages=stages), {"class_path": "callbacks.Throughput"})
    config = with_callback(config, {"class_path": f"{Work.__module__}.Work"})
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(config), "--trainer.log_every_n_steps=3", "--trainer.limit_val_batches=0"])
    told = re.findall(r"stage (\d) of 2, measured: ([\d.]+) s a step \(predicted: ([\d.]+)% of the FLOPs", caplog.text)
    predicted = re.findall(r"stage (\d) of 2: predicted step, in FLOPs of training all layers: ([\d.]+)%", caplog.text)
    assert [(stage, seconds) for stage, seconds, _ in told] == [("1", "3"), ("2", "1")]
    assert [(stage, share) for stage, _, share in told] == predicted and len({share for _, share in predicted}) == 2
