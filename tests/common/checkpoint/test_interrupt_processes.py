"""Two processes of which one is told to stop: both stop after the same step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sparsight.common.checkpoint.file import verify
from sparsight.common.checkpoint.interrupt import NAME
from tests.tiny_distillation import distillation_config

SECONDS = 240


@pytest.mark.faults
def test_two_processes_stop_together(tmp_path: Path) -> None:
    path = distillation_config(tmp_path, stages=[{"objective": "layerwise", "steps": 100_000, "warmup_steps": 1}])
    config = yaml.safe_load(path.read_text())
    saver = {"every_n_train_steps": 5, "save_top_k": 1, "dirpath": str(tmp_path / "saved")}
    config["trainer"] |= {
        "logger": False,
        "devices": 2,
        "strategy": "ddp",
        "limit_val_batches": 0,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}],
    }
    config["data"]["init_args"]["batch_size"] = 2
    path.write_text(yaml.safe_dump(config))
    run = subprocess.Popen(
        [sys.executable, "-m", "sparsight", "fit", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + SECONDS
    while not list((tmp_path / "saved").glob("*.ckpt")) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)  # to the first alone
    said, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 143, said[-3000:]
    about = verify(tmp_path / "saved" / NAME)
    assert about.step is not None and about.step >= 5
    assert f"--ckpt_path {tmp_path / 'saved' / NAME}" in said
