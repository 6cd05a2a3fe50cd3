"""A whole run on two processes: grids, average, metrics, checkpoints, resuming and export, as one process does them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sparsight.command.cli import main
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.surgery.sites import students
from tests import tiny
from tests import tiny_training_pair as pair
from tests.tiny_distillation import distillation_config
from tests.tiny_files import save_images, write_shard
from tests.tiny_processes import launch_command, run_command, together


def whole_run(folder: Path) -> Path:
    """A config with everything beside training that a run may have.

    No Adam, which turns the rounding of a tiny gradient into a whole step; no stage of a single token, whose kernel is
    fitted to nothing but rounding.
    """
    stages = [{"objective": o, "steps": 2, "lr": 0.1, "warmup_steps": 1} for o in ("layerwise", "end_to_end")]
    mixer = {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3, "scales": [1, 0.5]}}
    path = distillation_config(
        folder, stages=stages, mixer=mixer, optimizer="torch.optim.SGD", trained={"init_samples": 24}
    )
    config = yaml.safe_load(path.read_text())
    metrics = {"metrics": [{"class_path": "sparsight.evaluation.images.TeacherError"}], "num_samples": 5}
    saver = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    callbacks = {
        "callbacks.TrainableEMA": {"decay": 0.9},
        "callbacks.SampleGrid": {"labels": [0, 1], "every_n_steps": 2},
        "callbacks.GenerationMetrics": metrics,
        "callbacks.Throughput": {},
        "lightning.pytorch.callbacks.ModelCheckpoint": saver,
        "callbacks.ExportAtEnd": {"fp16": False},
    }
    config["trainer"] |= {
        "val_check_interval": 4,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": name, "init_args": options} for name, options in callbacks.items()],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def run_of(config: Path, root: Path, *, processes: int, resume: Path | None = None) -> list[str]:
    """Arguments of a run."""
    return [
        *("fit", "--config", str(config), f"--trainer.devices={processes}", "--trainer.strategy=ddp"),
        *(f"--trainer.default_root_dir={root}", f"--trainer.logger.init_args.save_dir={root}"),
        f"--data.batch_size={4 // processes}",
        *([] if resume is None else [f"--ckpt_path={resume}"]),
    ]


def logged(root: Path) -> dict[str, float]:
    """The last value of everything that a run wrote to metrics.csv."""
    with next(root.rglob("metrics.csv")).open() as file:
        return {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.mark.parametrize("start", [run_command, pytest.param(launch_command, marks=pytest.mark.slow)])
def test_two_processes_do_all_that_one_does(start: Callable[[list[str]], None], tmp_path: Path) -> None:
    config = whole_run(tmp_path)
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    run_command(run_of(config, one, processes=1), processes=1)
    start(run_of(config, two, processes=2))
    run_command(run_of(config, resumed, processes=2, resume=next(two.rglob("step=3.ckpt"))))
    wanted = torch.load(next(one.rglob("step=4.ckpt")), weights_only=True)["state_dict"]
    grid = np.asarray(Image.open(next(one.rglob("step_0000004.png")))).astype(int)
    (value,) = json.loads(next(one.rglob("val_step_0000004.json")).read_text())[:1]
    assert grid.std() > 0 and value["value"] > 0
    exported = DiffusionModel.from_pretrained(str(one / "student")).denoiser.state_dict()
    start = main(["validate", "--config", str(config), "--trainer.callbacks=[]"]).model.state_dict()
    moved = max(float((wanted[name] - value).abs().max()) for name, value in start.items())
    assert moved > 1e-2, "the comparison means nothing if nothing was learnt"
    errors = {name: error for name, error in logged(one).items() if "relative_l2" in name}
    assert any(name.startswith("val/") for name in errors) and any(name.startswith("train/") for name in errors)
    for root in (two, resumed):
        assert {name: logged(root)[name] for name in errors} == pytest.approx(errors, rel=1e-3)
        got = torch.load(next(root.rglob("step=4.ckpt")), weights_only=True)["state_dict"]
        for name, tensor in wanted.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)
        assert np.abs(np.asarray(Image.open(next(root.rglob("step_0000004.png")))).astype(int) - grid).max() <= 1
        (found,) = json.loads(next(root.rglob("val_step_0000004.json")).read_text())[:1]
        assert found["value"] == pytest.approx(value["value"], rel=1e-3), found["name"]
        student = DiffusionModel.from_pretrained(str(root / "student")).denoiser
        assert len(students(student)) == 2
        for name, tensor in student.state_dict().items():
            torch.testing.assert_close(tensor, exported[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_cached_latents_and_streams_are_trained_on_by_two_processes(tmp_path: Path) -> None:
    tiny.save_sd_pipeline(tmp_path / "teacher")
    save_images(tmp_path / "images", count=8)
    for shard in range(4):
        write_shard(tmp_path / f"{shard}.tar", 4 * shard, 4)
    together(pair.main, tmp_path)
    pair.train(tmp_path, tmp_path / "one", pair.latents(tmp_path, batch_size=4), processes=1)

    def weights(run: str, step: int = pair.STEPS) -> dict[str, torch.Tensor]:
        return torch.load(tmp_path / run / f"step={step}.ckpt", weights_only=True)["state_dict"]

    for got, wanted in (("two", "one"), ("resumed", "stream")):
        moved = max(float((weights(wanted)[name] - value).abs().max()) for name, value in weights(wanted, 2).items())
        assert moved > 1e-4, "the comparison means nothing if nothing was learnt"
        for name, value in weights(wanted).items():
            torch.testing.assert_close(weights(got)[name], value, rtol=1e-4, atol=1e-6)
    seen = [torch.load(tmp_path / f"seen_{rank}.pt") for rank in (0, 1)]
    assert len({index for ranks in seen for index in ranks["whole"]}) == 16, "every record of the stream, none twice"
    assert all(ranks["resumed"] == ranks["whole"][4:] for ranks in seen)
