"""Runs of every kind that writes something, on tiny models: what tests/faults kills, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from tests import tiny
from tests.tiny_lvlm import save_tiny_lvlm

SAVER = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"dirpath": "checkpoints", "filename": "{step}", "save_last": True, "every_n_train_steps": 1},
}
SAVER["init_args"] |= {"save_top_k": 2, "monitor": "step", "mode": "max"}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Scenario:
    """A command that can be given again and again until its work is done.

    Attributes:
        prepare: Makes the inputs in a folder.
        arguments: Of the command, which runs in that folder.
        outcome: What the finished run leaves: equal, bit by bit, however often it was killed.
    """

    prepare: Callable[[Path], None]
    arguments: tuple[str, ...]
    outcome: Callable[[Path], Mapping[str, Any]]


def _trainer(callbacks: list[Any], **options: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    return {"accelerator": "cpu", "default_root_dir": "run", "num_sanity_val_steps": 0, "callbacks": callbacks} | (
        quiet | options
    )


def _write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _distillation(folder: Path, data: dict[str, Any]) -> None:
    """Two stages with average, schedule, accumulation and an export at the end."""
    tiny.save_pixel_pipeline(folder / "teacher")
    stages = [{"objective": objective, "steps": 3, "warmup_steps": 1} for objective in ("layerwise", "end_to_end")]
    schedule = {"shape": "linear", "begin": 3, "end": 5, "order": "first"}
    callbacks = [
        {"class_path": "callbacks.TrainableEMA", "init_args": {"decay": 0.9}},
        {"class_path": "callbacks.PruningSchedule", "init_args": schedule},
        SAVER,
        {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": "student", "fp16": False, "overwrite": True}},
    ]
    model = {"teacher": "teacher", "mixer": {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3}}}
    model |= {"stages": stages, "trained": {"init_samples": 4}, "sampling": {"steps": 2}}
    _write(
        folder,
        {
            "seed_everything": 0,
            "trainer": _trainer(callbacks, accumulate_grad_batches=2, limit_val_batches=0),
            "model": {"class_path": "AttentionDistillation", "init_args": model},
            "data": data,
        },
    )


def _on_pictures(folder: Path) -> None:
    images, labels = tiny.save_idx(folder)
    records = {"class_path": "IdxRecords", "init_args": {"images": images.name, "labels": labels.name}}
    options = {"train": records, "image_size": 8, "transform": {"channels": 1}, "batch_size": 4}
    _distillation(folder, {"class_path": "ImageDataModule", "init_args": options})


def _on_samples(folder: Path) -> None:
    options = {"teacher": "teacher", "count": 12, "val_count": 2, "sampling": {"steps": 2}, "batch_size": 4}
    options |= {"cache": {"folder": "samples", "shard_size": 3}, "compute": {"batch_size": 3, "device": "cpu"}}
    _distillation(folder, {"class_path": "TeacherSamplesDataModule", "init_args": options})


def _on_latents(folder: Path) -> None:
    from tests.tiny_files import save_images

    tiny.save_sd_pipeline(folder / "teacher")
    save_images(folder / "images")
    records = {"class_path": "FolderRecords", "init_args": {"root": "images", "caption_column": "text"}}
    images = {"class_path": "ImageDataModule", "init_args": {"train": records, "image_size": 16, "batch_size": 2}}
    options = {"teacher": "teacher", "images": images, "cache": {"folder": "latents", "shard_size": 2}}
    options |= {"compute": {"device": "cpu"}}
    _write(
        folder,
        {
            "seed_everything": 0,
            "trainer": _trainer([SAVER], max_steps=4),
            "model": {
                "class_path": "DenoiserTraining",
                "init_args": {"pretrained": "teacher", "trainable": ["*.attn2.*"], "schedule": {"warmup_steps": 1}},
            },
            "data": {"class_path": "CachedLatentsDataModule", "init_args": options},
        },
    )


def _tuning(folder: Path) -> None:
    """Layers are tuned and others leave, with an export at the end."""
    from tests.tiny_tuning import STAGE, tuning_config

    score = {"class_path": "sparsight.lvlm.scores.AngularDistance"}
    path = tuning_config(folder, stages=[STAGE], prune={"score": score, "batches": 1})
    config = yaml.safe_load(path.read_text().replace(f"{folder}/", ""))
    schedule = {"shape": "linear", "begin": 1, "end": 3, "amount": 2, "order": "score"}
    callbacks = [
        {"class_path": "callbacks.TrainableEMA", "init_args": {"decay": 0.9}},
        {"class_path": "callbacks.PruningSchedule", "init_args": schedule},
        SAVER,
        {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": "student", "overwrite": True}},
    ]
    config["trainer"] |= _trainer(callbacks, limit_val_batches=0, accumulate_grad_batches=2)
    _write(folder, config)


def _evaluation(folder: Path) -> None:
    save_tiny_lvlm(folder / "base", "llava")
    task = {"class_path": "tests.tiny_evaluation.GreyTask", "init_args": {"count": 12}}
    both = {"methods": ["likelihood", "generation"], "new_tokens": 4}
    options = {"tasks": [task], "protocol": both, "batch_size": 2}
    report = {"class_path": "callbacks.ReformEvalReport", "init_args": {"folder": "report", "resamples": 100}}
    _write(
        folder,
        {
            "seed_everything": 0,
            "trainer": _trainer([report]),
            "model": {"class_path": "LVLMEvaluation", "init_args": {"base": "base"}},
            "data": {"class_path": "ReformEvalDataModule", "init_args": options},
        },
    )


def trained(folder: Path) -> dict[str, Any]:
    """Weights, averages and optimisers of the last checkpoint, and of the export where there is one."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    found: dict[str, Any] = {name: saved[name] for name in kept}
    found["averages"] = {key: value for key, value in saved["callbacks"].items() if key.startswith("TrainableEMA")}
    weights = sorted((folder / "student").rglob("*.safetensors"))
    return found | {f"export/{path.name}": load_file(path) for path in weights}


def answered(folder: Path) -> dict[str, Any]:
    """Every answer and score of a report."""
    report = json.loads((folder / "report" / "report.json").read_text())
    answers = {(each["method"], each["sample"], each["run"]): each for each in report["answers"]}
    return {"complete": report["complete"], "answers": answers, "scores": report["scores"]}


FIT = ("fit", "--config", "config.yaml", "--resume", "true")
SCENARIOS: dict[str, Scenario] = {
    "distillation": Scenario(_on_pictures, FIT, trained),
    "teacher_samples": Scenario(_on_samples, FIT, trained),
    "latents": Scenario(_on_latents, FIT, trained),
    "tuning": Scenario(_tuning, FIT, trained),
    "evaluation": Scenario(_evaluation, ("test", "--config", "config.yaml"), answered),
}
