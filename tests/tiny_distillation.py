"""Distillations that take a second: the module, and its configuration for the command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from blocks import DeltaConvBlock
from lightning_modules import AttentionDistillation
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import Stage
from tests import tiny


def distillation(teacher: str, stages: list[Stage] | None = None, **options: Any) -> AttentionDistillation:
    torch.manual_seed(0)
    stages = stages or [Stage("layerwise", 3, warmup_steps=1), Stage("end_to_end", 3, warmup_steps=1)]
    mixer = options.pop("mixer", partial(DeltaConvBlock, preset="released_pixart", kernel_size=3))
    trained = {"init_samples": 0} | options.pop("trained", {})
    return AttentionDistillation(teacher, mixer, stages, trained=trained, **{"sampling": Sampling(2)} | options)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    return Trainer(default_root_dir=folder, accelerator="cpu", **defaults | options)


def distillation_config(folder: Path, **model: Any) -> Path:
    """A complete config of a distillation that takes a second."""
    teacher = folder / "teacher"
    if not teacher.exists():
        tiny.save_pixel_pipeline(teacher)
    images, labels = tiny.save_idx(folder)
    records = {"class_path": "IdxRecords", "init_args": {"images": str(images), "labels": str(labels)}}
    stage = {"objective": "layerwise", "steps": 2, "warmup_steps": 1}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / "runs"),
            "enable_progress_bar": False,
            "enable_model_summary": False,  # with it comes an estimate of memory, which takes as long as the run
        },
        "model": {
            "class_path": "AttentionDistillation",
            "init_args": {
                "teacher": str(teacher),
                "mixer": {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3}},
                "stages": [stage, {**stage, "objective": "end_to_end"}],
                "sampling": {"steps": 2},
            }
            | model,
        },
        "data": {
            "class_path": "ImageDataModule",
            "init_args": {
                "train": records,
                "val": records,
                "image_size": 8,
                "transform": {"channels": 1},
                "batch_size": 4,
            },
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
