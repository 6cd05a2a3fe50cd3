"""A config for tuning a tiny image-text model on questions about tiny pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.datamodules.test_records import write_idx
from tests.tiny_lvlm import save_tiny_lvlm

STAGE = {"steps": 4, "lr": 0.05, "lr_schedule": "constant", "warmup_share": 0.0}


def tuning_config(folder: Path, family: str = "fast_vlm", **model: Any) -> Path:
    """Write pictures of three kinds, a tiny model unless it is there, and the config of a run of four steps.

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
