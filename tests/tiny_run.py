"""The smallest module that trains on real data: a line through the mean brightness of an image, in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import IdxRecords, ImageDataModule
from lightning_modules.base import TrainedPartsModule
from sparsight.command.trainer import SparsightTrainer
from tests import tiny


class Line(TrainedPartsModule):
    """Fits the sample's id by its brightness, which makes every step depend on which records were in it."""

    def __init__(self, rate: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.keep_hyperparameters()
        self.rate = rate
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.line.weight)
        torch.nn.init.zeros_(self.line.bias)

    def trained_names(self) -> set[str]:
        return {"line.weight", "line.bias"}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        brightness = batch["image"].flatten(1).mean(1, keepdim=True)
        return (self.line(brightness)[:, 0] - batch["index"] / 24).square().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


class At(Callback):
    """Does something once, in one training step, after its forward pass."""

    def __init__(self, step: int, action: Any, *, hook: str = "on_before_backward") -> None:
        self.step = step
        self.action, self.done = action, False
        setattr(self, hook, self._act)

    def _act(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step and not self.done:
            self.done = True
            self.action()


def data(folder: Path, **options: Any) -> ImageDataModule:
    """24 images in batches of 4."""
    images, labels = tiny.save_idx(folder)
    source = IdxRecords(str(images), str(labels))
    return ImageDataModule(train=source, **{"image_size": 8, "transform": {"channels": 1}, "batch_size": 4} | options)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> SparsightTrainer:
    """One that saves every step, in a folder of its own for every run."""
    saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, save_last=True, filename="{step}")
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, "max_steps": 8, "limit_val_batches": 0}
    return SparsightTrainer(
        **{"default_root_dir": folder, "callbacks": [*callbacks, saver], "logger": False} | silent | defaults | options
    )
