"""The memory estimate of a run: said before any data is prepared, with the shapes of its batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from blocks import DeltaConvBlock
from callbacks import TrainableEMA
from datamodules import (
    CachedLatentsDataModule,
    FolderRecords,
    ImageDataModule,
    StreamingImageDataModule,
    TarStream,
    TeacherSamplesDataModule,
)
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.measure.announce_memory import announce_memory
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.train.stages import LossTerms, Stage
from tests import tiny


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(tiny.save_sd_pipeline(tmp_path / "teacher"))


class StoppedError(Exception):
    """A run got as far as preparing its data."""


class Samples(TeacherSamplesDataModule):
    """Stops where a teacher begins to draw."""

    def prepare_data(self) -> None:
        raise StoppedError


def distillation(teacher: str, loss: Any = "default") -> AttentionDistillation:
    stages = [Stage("layerwise", 1), Stage("end_to_end", 1, loss=loss)]
    mixer = partial(DeltaConvBlock, kernel_size=3)
    return AttentionDistillation(teacher, mixer, stages, loading={"dtype": "bfloat16"})


def half_trained(teacher: str) -> DenoiserTraining:
    return DenoiserTraining(teacher, trainable=["*.attn2.*"], optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def wholly_trained(teacher: str) -> DenoiserTraining:
    return DenoiserTraining(teacher)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=folder, accelerator="cpu", **quiet | options)


def said(module: Any, data: LightningDataModule, folder: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    """What a run says before its data is prepared."""
    with caplog.at_level("INFO"), pytest.raises(StoppedError):
        trainer(folder, **options).fit(module, data)
    return caplog.text


def test_a_distillation_says_it_before_the_teacher_draws(
    teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = distillation(teacher)
    data = Samples(
        teacher,
        captions=["a cat"],
        batch_size=3,
        sampling={"size": (8, 24)},
        cache=CacheOptions(str(tmp_path / "cache")),
    )
    text = said(module, data, tmp_path, caplog, precision="bf16-mixed", callbacks=[TrainableEMA()])
    found = module.estimated_memory()
    assert f"Estimated memory:\n{found.text()}" in text
    assert list(found.stages) == [f"activations, batch 3, {stage}" for stage in ("layerwise", "end_to_end")]
    frozen = "frozen part of the denoiser, bfloat16"
    assert frozen in text and found.standing[frozen] > 0
    assert all(f"\n{name}" in text for name in ("text_encoder", "vae", "moving average", "their gradients"))


def test_samples_that_pass_twice_count_twice(teacher: str, tmp_path: Path) -> None:
    counts = []
    for guided in (0.0, 1.0):
        module = distillation(teacher, LossTerms(guided=guided))
        module.trainer = trainer(tmp_path)
        counts.append(list(module.estimated_memory().stages.values()))
    (layerwise, end_to_end), (same, more) = counts
    assert same == layerwise and more == pytest.approx(2 * end_to_end, rel=0.05)


@pytest.mark.parametrize("make", [half_trained, wholly_trained])
def test_training_a_denoiser_says_it_too(
    make: Any, teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make(teacher)
    data = Samples(
        teacher, captions=["a cat"], mode="samples", batch_size=2, cache=CacheOptions(str(tmp_path / "cache"))
    )
    text = said(module, data, tmp_path, caplog)
    found = module.estimated_memory()
    assert f"Estimated memory:\n{found.text()}" in text and "activations, batch 2, denoising" in found.stages
    trained = sum(4 * p.numel() for p in module.parameters() if p.requires_grad)
    assert found.standing["what is trained"] == found.standing["their gradients"] == trained
    assert found.standing["optimiser state"] == pytest.approx(0 if make is half_trained else 2 * trained, rel=0.01)
    assert "train fewer parameters" in found.remedies and "loading.dtype" not in found.remedies


def test_a_device_that_is_too_small_is_warned_of_in_time(
    teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsight.diffusion.measure.memory_estimate.available_bytes", lambda device: 1000)
    data = Samples(teacher, captions=["a cat"], cache=CacheOptions(str(tmp_path / "cache")))
    with pytest.warns(
        UserWarning,
        match=r"this run may need .* set loading\.dtype to bfloat16 and loading\.quantization to int8, or ",
    ):
        said(distillation(teacher), data, tmp_path, caplog)


def test_what_is_not_wanted_or_not_known_is_not_estimated(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("nobody asked")

    announce_memory(trainer(tmp_path, enable_model_summary=False), never)
    announce_memory(trainer(tmp_path, strategy=ModelParallelStrategy()), never)
    with pytest.raises(AssertionError, match="nobody asked"):
        announce_memory(trainer(tmp_path), never)


def test_every_datamodule_knows_the_shape_of_its_batches(teacher: str, tmp_path: Path) -> None:
    model = DiffusionModel.from_pretrained(teacher)
    assert model.pixels_per_cell == 2
    options: dict[str, Any] = {"image_size": (32, 48), "batch_size": 5}
    images = ImageDataModule(FolderRecords(str(tmp_path)), **options)
    stream = StreamingImageDataModule(TarStream(str(tmp_path / "*.tar")), **options)
    for data in (images, stream, CachedLatentsDataModule(teacher, images, cache=CacheOptions(str(tmp_path / "cache")))):
        assert data.batch_shape(model) == (5, 16, 24)
    for size, wanted in ((None, (16, 16)), ((8, 24), (8, 24))):
        samples = TeacherSamplesDataModule(teacher, captions=["a cat"], batch_size=5, sampling={"size": size})
        assert samples.batch_shape(model) == (5, *wanted)


def test_batches_that_nobody_knows_are_counted_with_one_sample(teacher: str, tmp_path: Path) -> None:
    module = half_trained(teacher)
    module.trainer = trainer(tmp_path)
    assert list(module.estimated_memory().stages) == ["activations, batch 1, denoising"]
