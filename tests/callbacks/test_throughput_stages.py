"""Measured step times are told stage by stage, next to what was predicted."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from sparsight.cli import main
from tests.lightning_modules.lvlm_run import STAGE, tuning_config
from tests.lightning_modules.test_sparse_layer_tuning import with_callback

SLOW = 0.3  # seconds


class SlowFirstStage(Callback):
    """Waits in every step of the projector's stage."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        time.sleep(SLOW if trainer.global_step < 8 else 0.0)


def test_every_stage_is_told_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = [STAGE | {"steps": 8, "train": ["projector"]}, STAGE]
    config = with_callback(tuning_config(tmp_path, stages=stages), {"class_path": "callbacks.Throughput"})
    config = with_callback(config, {"class_path": f"{SlowFirstStage.__module__}.SlowFirstStage"})
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(config), "--trainer.log_every_n_steps=3", "--trainer.limit_val_batches=0"])
    told = re.findall(
        r"stage (\d) of 2, measured: ([\d.e-]+) s a step \(predicted: ([\d.]+)% of the FLOPs", caplog.text
    )
    predicted = re.findall(r"stage (\d) of 2: predicted step, in FLOPs of training all layers: ([\d.]+)%", caplog.text)
    assert [(stage, share) for stage, _, share in told] == predicted and len({share for _, share in predicted}) == 2
    first, second = (float(seconds) for _, seconds, _ in told)
    assert first >= SLOW and first - second > 0.5 * SLOW
