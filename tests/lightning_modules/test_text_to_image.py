"""Stable Diffusion's shape from text to student: caption conditions, VAE, U-Net sites, both kinds of data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from blocks import DeltaConvBlock
from datamodules import FolderRecords, ImageDataModule, TeacherSamplesDataModule
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import LossTerms, Stage
from tests import tiny

CAPTIONS = ["a cat", "a dog", "a boat", "a hat"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_sd_pipeline(tmp_path_factory.mktemp("teacher") / "sd"))


def captioned_images(folder: Path, side: int) -> ImageDataModule:
    lines = ["file_name,text"]
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (side, side), (60 * number, 20, 90)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    records = FolderRecords(str(folder), caption_column="text")
    return ImageDataModule(train=records, val=records, image_size=side, batch_size=2)


def fit(folder: Path, module: Any, data: Any, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def distillation(teacher: str, stages: list[Stage]) -> AttentionDistillation:
    mixer = partial(DeltaConvBlock, preset="released_sd15", kernel_size=3)
    return AttentionDistillation(teacher, mixer, stages, trained={"init_samples": 2}, sampling=Sampling(2))


def test_distilling_on_captioned_images(teacher: str, tmp_path: Path) -> None:
    every_term = LossTerms(to_target=1.0, site_on="residual", timestep_weight="min_snr")
    stages = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=every_term, warmup_steps=1)]
    module = distillation(teacher, stages)
    side = module.diffusion.sample_shape()[1] * module.diffusion.pixels_per_cell
    trainer = fit(tmp_path, module, captioned_images(tmp_path, side))
    assert trainer.global_step == 4
    assert 0 < float(trainer.callback_metrics["val/output_relative_l2"]) < 10
    images = module.draw({"caption": CAPTIONS[:2]}, torch.arange(2))
    assert images.shape == (2, 3, side, side) and 0 <= float(images.min()) <= float(images.max()) <= 1


def test_captions_reach_the_denoiser_and_are_dropped_in_the_batch(teacher: str) -> None:
    module = distillation(teacher, [Stage("layerwise", 1)])
    shape = module.diffusion.sample_shape()
    batch = {"sample": torch.zeros(4, *shape), "caption": CAPTIONS, "index": torch.arange(4)}
    kept = module.noised(batch, step=0, condition_dropout=0.0)["cond"]["encoder_hidden_states"]
    gone = module.noised(batch, step=0, condition_dropout=1.0)["cond"]["encoder_hidden_states"]
    some = module.noised(batch, step=0, condition_dropout=0.5)["cond"]["encoder_hidden_states"]
    assert not torch.equal(kept[0], kept[1])
    assert all(torch.equal(row, gone[0]) for row in gone)
    assert all(torch.equal(row, k) or torch.equal(row, g) for row, k, g in zip(some, kept, gone, strict=True))


@pytest.mark.slow
def test_distilling_on_the_teachers_own_trajectories(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher, [Stage("end_to_end", 2, warmup_steps=1)])
    options = {
        "captions": CAPTIONS,
        "count": 4,
        "val_count": 2,
        "sampling": {"steps": 3},
        "batch_size": 2,
        "compute": {"device": "cpu"},
    }
    data = TeacherSamplesDataModule(teacher, cache=CacheOptions(str(tmp_path / "cache")), **options)
    assert fit(tmp_path, module, data).global_step == 2
    wants_target = distillation(teacher, [Stage("end_to_end", 1, loss="paper")])
    with pytest.raises(ValueError, match="to_target needs clean samples"):
        fit(tmp_path, wants_target, data)


def test_training_a_text_conditioned_denoiser(teacher: str, tmp_path: Path) -> None:
    module = DenoiserTraining(pretrained=teacher, trainable=["*attn2*"], schedule={"warmup_steps": 1})
    side = module.diffusion.sample_shape()[1] * module.diffusion.pixels_per_cell
    before = {name: p.clone() for name, p in module.diffusion.vae.named_parameters()}
    assert fit(tmp_path, module, captioned_images(tmp_path, side), max_steps=2).global_step == 2
    assert all(torch.equal(p, before[name]) for name, p in module.diffusion.vae.named_parameters())
    assert all(".attn2." in name for name in module.state_dict())
