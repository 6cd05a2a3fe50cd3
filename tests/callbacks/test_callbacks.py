"""Pictures, throughput and predictions of a short run."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from blocks import SoftmaxAttention
from callbacks import ImageWriter, SampleGrid, Throughput, TrainableEMA, throughput
from datamodules import IdxRecords, ImageDataModule, Record, sampler
from lightning_modules import AttentionDistillation
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_clock import Clock

TRAINED: dict[str, Any] = {"trained": {"projections": True}, "sampling": Sampling(2)}


@pytest.fixture
def module(tmp_path: Path) -> AttentionDistillation:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    stages = [Stage("end_to_end", 4, warmup_steps=1)]
    return AttentionDistillation(str(teacher), SoftmaxAttention, stages, **TRAINED)


def fit(folder: Path, module: Any, callbacks: list[Any], channels: int = 1, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=-1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, tiny.image_data(folder, channels=channels))
    return trainer


def test_grids_show_the_teacher_above_an_equal_student(tmp_path: Path, module: AttentionDistillation) -> None:
    module.clock.stages[0].lr = 1e-12  # the student is the teacher from the start, and stays so
    trainer = fit(tmp_path, module, [SampleGrid(labels=[0, 3, 9], every_n_steps=2)], logger=CSVLogger(tmp_path))
    folder = Path(str(trainer.log_dir)) / "samples"
    assert sorted(p.name for p in folder.iterdir()) == ["step_0000002.png", "step_0000004.png"]
    grid = Image.open(folder / "step_0000004.png").convert("L")
    size = 64 + 2  # 8 pixels, shown larger, and a gap
    left, top = grid.width - 3 * size, grid.height - 2 * size
    assert left > 0 and top > 0, "there is no room for names"
    teacher, student = (grid.crop((left, top + size * row, grid.width, top + size * row + 64)) for row in (0, 1))
    difference = torch.tensor(list(teacher.getdata())).float() - torch.tensor(list(student.getdata())).float()
    assert difference.abs().max() <= 1
    assert torch.tensor(list(teacher.getdata())).float().std() > 10


def test_grids_of_the_average_leave_training_alone(tmp_path: Path, module: AttentionDistillation) -> None:
    weights = []
    for callbacks in ([TrainableEMA(0.9)], [TrainableEMA(0.9), SampleGrid(labels=[1], every_n_steps=1)]):
        torch.manual_seed(0)
        twin = AttentionDistillation(module.teacher, SoftmaxAttention, module.clock.stages, **TRAINED)
        fit(tmp_path, twin, callbacks, logger=False)
        weights.append(twin.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_labels_or_captions(module: AttentionDistillation) -> None:
    with pytest.raises(ValueError, match="labels or captions"):
        SampleGrid(labels=[1], captions=["a"])
    grid = SampleGrid()
    grid.setup(Trainer(logger=False, accelerator="cpu"), module, "fit")
    assert grid.labels == [*range(10)]


def test_grids_that_the_model_cannot_draw_are_refused_before_training(
    tmp_path: Path, module: AttentionDistillation
) -> None:
    for grid, message in (
        (
            SampleGrid(captions=["a cat"]),
            "SampleGrid is given captions, but DiT.* is conditioned on labels: give labels",
        ),
        (SampleGrid(labels=[11]), "SampleGrid: labels 11 to 11 do not fit a denoiser of 10 classes"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            fit(tmp_path, module, [grid], logger=False)
        assert module.global_step == 0
    text_teacher = str(tiny.save_sd_pipeline(tmp_path / "sd"))
    text = AttentionDistillation(text_teacher, SoftmaxAttention, [Stage("layerwise", 4)], **TRAINED)
    with pytest.raises(ConfigurationError, match="SampleGrid is given labels, but UNet2DConditionModel is conditioned"):
        fit(tmp_path, text, [SampleGrid(labels=[1])], channels=3, logger=False)
    with pytest.raises(ConfigurationError, match="SampleGrid: give captions, as there are no classes to draw"):
        fit(tmp_path, text, [SampleGrid()], channels=3, logger=False)
    with pytest.raises(ConfigurationError, match="LightningModule draws no samples: leave SampleGrid out"):
        SampleGrid(labels=[1]).setup(Trainer(logger=False, accelerator="cpu"), LightningModule(), "fit")


def test_throughput_and_every_term_are_logged(
    tmp_path: Path, module: AttentionDistillation, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer = fit(tmp_path, module, [Throughput()], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert re.search(r"measured: [\d.e-]+ s a step, peak memory [\d,]+ MiB", caplog.text)
    trainer.logger.save()  # type: ignore[union-attr]
    columns = (Path(str(trainer.log_dir)) / "metrics.csv").read_text().splitlines()[0].split(",")
    sites = [f"train/relative_l2/{path}" for path in module.shells]
    expected = {"train/loss", "train/to_teacher", "train/site", "train/samples_per_second", "train/peak_memory_mib"}
    expected.add("train/data_wait_share")
    assert expected | set(sites) <= set(columns)
    assert float(trainer.callback_metrics["train/peak_memory_mib"]) > 50
    assert 0 < float(trainer.callback_metrics["train/samples_per_second"]) < 1e5


class SlowRecords(IdxRecords):
    """Takes half a second to find a record."""

    def __init__(self, *files: str, clock: Clock) -> None:
        super().__init__(*files)
        self.clock = clock

    def __getitem__(self, index: int) -> Record:
        self.clock.sleep(0.5)
        return super().__getitem__(index)


class Watch(Callback):
    """Works for 4 seconds in every step and for 2 before every validation, and notes the logged shares of waiting."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.shares: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.sleep(4)

    def on_validation_start(self, *_: Any) -> None:
        self.clock.sleep(2)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.shares.append(float(trainer.callback_metrics["train/data_wait_share"]))


def test_the_share_of_waiting_is_the_time_that_records_take(
    tmp_path: Path, module: AttentionDistillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for measuring in (throughput, sampler):
        monkeypatch.setattr(measuring, "time", clock)
    files = tuple(map(str, tiny.save_idx(tmp_path)))
    slow = SlowRecords(*files, clock=clock)
    data = ImageDataModule(slow, val=IdxRecords(*files), image_size=8, transform={"channels": 1}, batch_size=4)
    watch = Watch(clock)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[Throughput(), watch],
        logger=False,
        log_every_n_steps=1,
        limit_val_batches=1,
        val_check_interval=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    # four records take 2 seconds, a step 4, and from the second step on a validation lies between: 2 of 8 seconds
    assert watch.shares[1:] == pytest.approx([0.25] * 3)


def test_predictions_are_written_one_file_a_sample(tmp_path: Path, module: AttentionDistillation) -> None:
    data = tiny.image_data(tmp_path, count=6)
    writer = ImageWriter(str(tmp_path / "drawn"))
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    predict = partial(Trainer(callbacks=[writer], **options).predict, module, datamodule=data)
    predict(return_predictions=False)
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == [f"{i:08d}.png" for i in range(6)]
    first = (tmp_path / "drawn" / "00000003.png").read_bytes()
    predict(return_predictions=False)
    assert (tmp_path / "drawn" / "00000003.png").read_bytes() == first
