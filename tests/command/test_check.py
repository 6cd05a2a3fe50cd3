"""``sparsight check`` tries all that a run does, writes nothing where the run would, and shows the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from PIL import Image

from sparsight.command.checks.trial import Trial
from sparsight.command.cli import main
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_clock import Clock
from tests.tiny_distillation import distillation, distillation_config, trainer
from tests.tiny_tuning import SCORE, pruning, tuning_config, with_callback


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_distillation_is_tried_from_data_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = distillation_config(tmp_path)
    schedule = {"shape": "linear", "begin": 1000, "end": 2000, "amount": 1.0}
    callbacks = {
        "callbacks.PruningSchedule": schedule,
        "callbacks.TrainableEMA": {},
        "callbacks.Throughput": {},
        "callbacks.ExportAtEnd": {"output": str(tmp_path / "student")},
        "callbacks.SampleGrid": {"labels": [0, 1]},
        "lightning.pytorch.callbacks.ModelCheckpoint": {"dirpath": str(tmp_path / "kept"), "every_n_train_steps": 1},
    }
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] = [{"class_path": name, "init_args": own} for name, own in callbacks.items()]
    content["model"]["init_args"]["stages"][0]["steps"] = 2000
    config.write_text(yaml.safe_dump(content))
    before = files(tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        main(["check", "--config", str(config), "--seed_everything", "1"])
    assert not [each for each in warned if "logging interval" in str(each.message)]
    assert files(tmp_path) - before == {"runs/check/data.png"}
    assert Image.open(tmp_path / "runs" / "check" / "data.png").width > 4 * 64
    told = capsys.readouterr()
    said = told.out
    assert said.endswith(f"Next:\n  sparsight fit --config {config} --seed_everything 1\n")
    assert "measured:" not in said + told.err, "a trial measures steps itself"
    assert "stage 2 of 2, end_to_end: a step takes" in said
    assert "for 2002 steps" in said and "loaded again and compared" in said and "validation  one batch" in said


@pytest.mark.parametrize("count", [4, 24])
def test_a_step_is_as_long_as_all_batches_that_it_takes(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With data of one batch, after which every epoch ends, too."""
    clock = Clock()
    monkeypatch.setattr("sparsight.command.checks.trial.time", clock)
    trial = Trial(tmp_path / "checkpoint.ckpt")

    class Ticks(Callback):
        """A batch takes two seconds."""

        def on_train_batch_end(self, *_: Any) -> None:
            clock.sleep(2.0)

    module = distillation(str(tiny.save_pixel_pipeline(tmp_path / "teacher")), [Stage("layerwise", 3, warmup_steps=1)])
    run = trainer(tmp_path, callbacks=[Ticks(), trial], accumulate_grad_batches=3, limit_val_batches=0)
    run.fit(module, tiny.image_data(tmp_path, count=count))
    assert [cost.seconds for cost in trial.costs] == [6.0]


@pytest.mark.slow
def test_a_tuning_that_removes_layers_is_tried_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_callback(tuning_config(tmp_path, prune=SCORE), pruning())
    before = files(tmp_path)
    main(["check", "--config", str(config), "--output", str(tmp_path / "shown")])
    assert files(tmp_path) - before == {"shown/data.txt"}
    text = (tmp_path / "shown" / "data.txt").read_text()
    assert text.count("train record") == 8 and "[[" in text
    assert "loaded again and compared" in capsys.readouterr().out


def test_what_a_run_would_end_with_is_said(tmp_path: Path) -> None:
    config = distillation_config(tmp_path)
    with pytest.raises(SystemExit, match="do not fill one batch of 1000"):
        main(["check", "--config", str(config), "--data.batch_size=1000"])
    assert not (tmp_path / "runs" / "check" / "run").exists()


def test_what_trains_nothing_is_refused(tmp_path: Path) -> None:
    config = tuning_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    content["model"] = {"class_path": "LVLMEvaluation", "init_args": {"base": str(tmp_path / "base")}}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match="LVLMEvaluation trains nothing"):
        main(["check", "--config", str(config)])
