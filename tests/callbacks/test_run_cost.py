"""What a whole run takes is told from its first steps, and is what it takes."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import ExportAtEnd, Throughput, TrainableEMA, throughput
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.measure import run_cost
from sparsight.common.measure.run_cost import whole_run
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_distillation import distillation


@pytest.mark.usefixtures("reload_here")
def test_a_run_tells_time_disk_and_memory_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "FORESEEN", 3)
    told = []
    monkeypatch.setattr(throughput, "whole_run", lambda *a, **o: told.append(o["disk"]) or whole_run(*a, **o))
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    module = distillation(teacher, [Stage("end_to_end", 6, warmup_steps=1)])
    monkeypatch.setattr("lightning_modules.diffusion.announce_memory", lambda *_: 3 * 2**20)
    saver = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, save_last=True)
    export = ExportAtEnd(output=str(tmp_path / "student"), fp16=False)
    trainer = SparsightTrainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Throughput(), TrainableEMA(), saver, export],
    )
    with caplog.at_level("INFO"):
        trainer.fit(module, tiny.image_data(tmp_path, channels=1))
    [line] = re.findall(r"the whole run: .*", caplog.text)
    assert re.search(
        r"6 steps take about 0:00:\d\d, about \d+ MB of disk \(4 checkpoints .*, export .*\), peak memory so far "
        r"[\d,]+ MiB of the whole process, 3 MiB were estimated",
        line,
    )
    [disk] = told
    kept = [path.stat().st_size for path in (tmp_path / "kept").glob("*.ckpt")]
    assert len(kept) == 4 and disk["4 checkpoints"] < sum(kept) < disk["4 checkpoints"] + 4 * 60_000  # facts beside it
    weights = sum(path.stat().st_size for path in (tmp_path / "student").rglob("*.safetensors"))
    assert disk["export"] == pytest.approx(weights, rel=0.3)


def test_what_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(run_cost, "disk_usage", lambda folder: usage(10**9))
    options = {"steps": 9000.0, "folder": tmp_path / "not" / "there", "peak_mib": 2500.4, "of_process": False}
    assert whole_run(7200.2, disk={"2 checkpoints": 4 * 10**8, "export": 5 * 10**8}, **options) == (
        "9000 steps take about 2:00:01, about 900 MB of disk (2 checkpoints 400 MB, export 500 MB), "
        "peak memory so far 2,500 MiB"
    )
    assert "; the disk has 1,000 MB left, which is too little)" in whole_run(
        None, disk={"export": 2 * 10**9}, **options
    )
    assert whole_run(None, disk={}, **options) == "peak memory so far 2,500 MiB"
