"""No step of training waits for the device, from Lightning's loop to the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from blocks import DeltaConvBlock, NeighborhoodAttention
from callbacks import RunProgress, TrainableEMA
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_device import FusedOnPaper, OnPaper, Waits
from tests.tiny_distillation import distillation
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

STAGES = [Stage("layerwise", 3, warmup_steps=1), Stage("end_to_end", 3, warmup_steps=1, loss="paper")]


class Watched(Callback):
    """Keeps what was noted in every step but the first, which makes what others have, and the last, which is told."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.noted: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.noted += self.waits.noted if trainer.global_step > 1 else []
        self.waits.noted = []


def waits_in(folder: Path, module: LightningModule, data: Any) -> list[str]:
    waits = Waits()
    watched = Watched(waits)
    trainer = Trainer(
        strategy=OnPaper(), callbacks=[watched, TrainableEMA(), RunProgress()], max_steps=6, max_epochs=-1,
        limit_val_batches=0, gradient_clip_val=1.0, log_every_n_steps=1000, enable_checkpointing=False, logger=False,
        default_root_dir=folder, enable_model_summary=False,
    )  # fmt: skip
    with waits:
        trainer.fit(module, data)
    assert trainer.global_step == 6
    return watched.noted


def distilled(teacher: str) -> LightningModule:
    return distillation(teacher, STAGES, optimizer=FusedOnPaper)


def denoising(teacher: str) -> LightningModule:
    optimizer = partial(FusedOnPaper, lr=1e-3)
    return DenoiserTraining(teacher, trainable=["*.attn1.*"], optimizer=optimizer, noise={"snr_gamma": 5.0})


@pytest.mark.parametrize("make", [distilled, denoising])
def test_no_step_of_either_stage_waits(tmp_path: Path, make: Callable[[str], LightningModule]) -> None:
    module = make(str(tiny.save_pixel_pipeline(tmp_path / "teacher")))
    found = waits_in(tmp_path, module, tiny.image_data(tmp_path, count=48))
    assert not found, "\n".join(found)


def samples_of(module: AttentionDistillation, *, trajectory: bool) -> Any:
    """24 samples in model space with captions and labels, or states of a trajectory."""
    rows = []
    for number in range(24):
        row = {"caption": "a cat", "label": number % 3, "index": number}
        sample = torch.randn(module.diffusion.sample_shape())
        rows.append(row | ({"xt": sample, "timestep": 500} if trajectory else {"sample": sample}))
    return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


NEIGHBOURS = partial(NeighborhoodAttention, kernel_size=3)
ROWS = [
    (tiny.save_pixel_pipeline, NEIGHBOURS, True),
    (tiny.save_sd_pipeline, DeltaConvBlock, False),
    (tiny.save_sdxl_pipeline, DeltaConvBlock, True),
    (tiny.save_pixart_pipeline, NEIGHBOURS, True),
    (save_sd3_pipeline, NEIGHBOURS, False),
    (save_flux_pipeline, DeltaConvBlock, False),
    (save_wan_pipeline, NEIGHBOURS, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("save", "mixer", "trajectory"), ROWS)
def test_no_family_waits(tmp_path: Path, save: Any, mixer: Any, trajectory: bool) -> None:
    stages = [Stage("layerwise", 3), Stage("end_to_end", 3)]
    options = {"mixer": mixer, "trained": {"projections": mixer is NEIGHBOURS}}
    module = distillation(str(save(tmp_path / "teacher")), stages, optimizer=FusedOnPaper, **options)
    found = waits_in(tmp_path, module, samples_of(module, trajectory=trajectory))
    assert not found, "\n".join(found)


class Strict(Callback):
    """Lets torch refuse to wait in every step but the first two and the last."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 1 < trainer.global_step < 5 else "default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_a_gpu(tmp_path: Path, precision: Any) -> None:
    optimizer = partial(torch.optim.AdamW, fused=True)
    module = distillation(str(tiny.save_pixel_pipeline(tmp_path / "teacher")), STAGES, optimizer=optimizer)
    trainer = Trainer(
        accelerator="gpu", devices=1, callbacks=[Strict(), TrainableEMA(), RunProgress()], precision=precision,
        max_epochs=-1, limit_val_batches=0, gradient_clip_val=1.0, log_every_n_steps=1000, enable_checkpointing=False,
        logger=False, default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(module, tiny.image_data(tmp_path, count=48))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 6
