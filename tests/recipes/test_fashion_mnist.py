"""The offline Fashion-MNIST recipes, walked through by the command with a tiny DiT. The study has tests of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsight.command.arguments import read_config
from sparsight.diffusion.model.load import load_pipeline
from tests import tiny
from tests.tiny_recipes import walk

pytestmark = pytest.mark.usefixtures("reload_here")
TINY = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}


def shrunk(name: str, folder: Path, *, model: dict[str, Any], data: dict[str, Any]) -> Path:
    """What is laid over a recipe: another model and smaller numbers; nothing else is changed."""
    callbacks = read_config(f"experiment/{name}")["trainer"]["callbacks"]
    for callback in callbacks:
        options = callback.get("init_args", {})
        fewer: dict[str, Any] = {"every_n_steps": 4, "every_n_train_steps": 2, "labels": [0, 1]}
        options |= {key: value for key, value in fewer.items() if key in options}
        if callback["class_path"] == "callbacks.ExportAtEnd":
            callback["init_args"] = options | {"output": str(folder / name / "export")}
    trainer = {
        "accelerator": "cpu",
        "default_root_dir": str(folder / name),
        "enable_progress_bar": False,
        "val_check_interval": 2,
        "callbacks": callbacks,
    }
    small = {"trainer": trainer, "model": {"init_args": model}, "data": {"init_args": {"batch_size": 4} | data}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def distillation(name: str, teacher: Path) -> dict[str, Any]:
    """Fewer steps of every stage, and a teacher of 4x4 tokens."""
    stages = read_config(f"experiment/{name}")["model"]["init_args"]["stages"]
    fewer = [stage | {"steps": 2, "warmup_steps": 1} for stage in stages]
    mixer = {"init_args": {"kernel_size": 3}}
    trained = {"init_samples": 4}
    return {"teacher": str(teacher), "stages": fewer, "mixer": mixer, "trained": trained, "sampling": {"steps": 2}}


def records(folder: Path) -> dict[str, Any]:
    images, labels = map(str, tiny.save_idx(folder))
    source = {"init_args": {"images": images, "labels": labels}}
    test = {"class_path": "datamodules.IdxRecords"} | source
    return {"train": source, "val": source, "test": test, "image_size": 8}


def check_student(folder: Path) -> None:
    """It has mixers, loads by itself and draws."""
    pipeline: Any = load_pipeline(str(folder))
    assert [type(module).__name__ for module in pipeline.transformer.modules()].count("DeltaConvBlock") == 2
    images = pipeline([0, 3], num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").images
    assert images.shape == (2, 1, 8, 8) and float(images.std()) > 0


def test_quickstart(tmp_path: Path) -> None:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    fewer = {
        "teacher": str(teacher),
        "count": 4,
        "val_count": 2,
        "sampling": {"steps": 3},
        "cache": {"folder": str(tmp_path / "samples")},
    }
    small = shrunk("quickstart", tmp_path, model=distillation("quickstart", teacher), data=fewer)
    check_student(walk("quickstart", small))


@pytest.mark.slow
def test_a_student_of_several_scales(tmp_path: Path) -> None:
    name, teacher = "fashion_mnist_mixed_sizes", tiny.save_pixel_pipeline(tmp_path / "teacher")
    small = shrunk(name, tmp_path, model=distillation(name, teacher), data=records(tmp_path))
    check_student(walk(name, small))


@pytest.mark.slow
def test_the_shipped_teacher_is_trained_from_nothing(tmp_path: Path) -> None:
    model = {"denoiser": {"init_args": TINY}, "schedule": {"warmup_steps": 1}, "sampling": {"steps": 2}}
    small = shrunk("fashion_mnist_teacher", tmp_path, model=model, data=records(tmp_path))
    walk("fashion_mnist_teacher", small, "--trainer.max_steps", "4")
