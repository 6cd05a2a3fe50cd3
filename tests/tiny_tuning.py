"""Runs that tune a tiny image-text model on questions about tiny images: configurations, and what they leave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.surgery.retire import RetiredLayers
from sparsight.lvlm.train.trained import make_trainable
from tests.tiny_files import write_idx
from tests.tiny_lvlm import save_tiny_lvlm

STAGE = {"steps": 4, "lr": 0.05, "lr_schedule": "constant", "warmup_share": 0.0}


def tuning_config(folder: Path, family: str = "llava", **model: Any) -> Path:
    """Write images of three kinds, a tiny model unless it is there, and the config of a run of four steps.

    SGD, because Adam turns the rounding of a tiny gradient into a whole step.
    """
    base = folder / "base"
    if not base.exists():
        save_tiny_lvlm(base, family)
    rng = np.random.default_rng(0)
    labels = np.arange(24, dtype=np.uint8) % 3
    pictures = (rng.integers(0, 60, (24, 16, 16)) + 90 * labels[:, None, None]).astype(np.uint8)
    paths = {"images": str(write_idx(folder / "images", pictures)), "labels": str(write_idx(folder / "labels", labels))}
    source = {"class_path": "IdxRecords", "init_args": paths | {"classes": ["bag", "coat", "shoe"]}}

    def questions(**options: Any) -> dict[str, Any]:
        return {"class_path": "LabelledQuestions", "init_args": {"source": source, **options}}

    texts = {"class_path": "TextQuestions", "init_args": {"kinds": ["opposites"]}}
    items = {"sources": [questions(vary=False, tasks=["naming", "yes_no"]), texts], "limits": [6, 5]}
    options = {
        "base": str(base),
        "stages": [STAGE],
        "layers": {"class_path": "Explicit", "init_args": {"layers": [1, 4]}},
    }
    config = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "accelerator": "cpu",
            "precision": "32",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 4,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"},
                }
            ],
        },
        "model": {
            "class_path": "SparseLayerTuning",
            "init_args": options | {"optimizer": "torch.optim.SGD"} | model,
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {
                "model": str(base),
                "train": questions(),
                "val": {"class_path": "MixedRecords", "init_args": items},
                "batch_size": 4,
            },
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def checkpoint(folder: Path, step: int, run: str = "run") -> Path:
    (found,) = (folder / run).rglob(f"step={step}*.ckpt")
    return found


def pruning(amount: int = 2, **options: Any) -> dict[str, Any]:
    init = {"shape": "one_shot", "begin": 1, "amount": amount} | options
    return {"class_path": "callbacks.PruningSchedule", "init_args": init}


def with_callback(config: Path, callback: dict[str, Any]) -> Path:
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append(callback)
    config.write_text(yaml.safe_dump(content))
    return config


SCORE = {"score": {"class_path": "sparsight.lvlm.scores.BlockInfluence"}, "batches": 2}

ROTATION = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 1, "every_n_steps": 2}}


def adapted_module(model: Any, parts: Parts) -> SimpleNamespace:
    """What of a SparseLayerTuning adapters are written from, all of it moved as if by training."""
    trained = make_trainable(model, parts, layers=[1, 2], lora=LoRA(rank=2), wanted=["layers", "projector"])
    for name in (name for part in trained.values() for name in part):
        model.get_parameter(name).data += 0.1 * torch.randn_like(model.get_parameter(name))
    retired = RetiredLayers(model, parts)
    return SimpleNamespace(model=model.eval(), parts=parts, trained=trained, adapters=True, retired=retired)
