"""The shipped recipes, walked through with tiny models of the same classes: what users of the real ones will do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from sparsight.command.arguments import read_config
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from tests import tiny
from tests.tiny_recipes import check_plain_diffusers_draws, command, without_export

pytestmark = pytest.mark.usefixtures("reload_here")
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd15": tiny.save_sd_pipeline,
    "sdxl": tiny.save_sdxl_pipeline,
    "pixart_sigma": tiny.save_pixart_pipeline,
}
RECIPES = [f"{family}_{kind}" for family in FAMILIES for kind in ("24gb", "paper")]
# The one that asks most: what was published, on drawn images in buckets. U-Nets take twenty seconds each.
QUICK = ("pixart_sigma_paper",)
CAPTIONS = ["a cat", "a dog", "a boat", "a hat", "a tree", "a bee"]


def captioned_images(folder: Path, side: int) -> Path:
    """Twice as wide as high."""
    folder.mkdir()
    lines = ["file_name,text"]
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (2 * side, side), (40 * number, 20, 90)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def shrunk(name: str, teacher: Path, folder: Path) -> Path:
    """What is laid over a recipe: another teacher, smaller numbers, for most U-Nets fp32; nothing else changes."""
    recipe = read_config(f"experiment/{name}")
    callbacks = recipe["trainer"]["callbacks"]
    for callback in callbacks:
        options = callback.get("init_args", {})
        fewer: dict[str, Any] = {"every_n_steps": 4, "every_n_train_steps": 2, "captions": CAPTIONS[:2]}
        options |= {key: value for key, value in fewer.items() if key in options}
    stages = recipe["model"]["init_args"]["stages"]
    stages = [stage | {"steps": 4 // len(stages), "warmup_steps": 1} for stage in stages]
    model = DiffusionModel.from_pretrained(str(teacher))
    small: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
            "val_check_interval": 2,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "limit_test_batches": 1,
            "callbacks": callbacks,
        },
        "model": {
            "init_args": {
                "teacher": str(teacher),
                "mixer": {"init_args": {"kernel_size": 3}},
                "stages": stages,
                "trained": {"init_samples": min(2, recipe["model"]["init_args"]["trained"]["init_samples"])},
                "sampling": {"steps": 2},
            }
        },
    }
    if model.component == "unet" and name != "sd15_24gb":  # convolutions in bfloat16 take seconds on a CPU
        small["trainer"]["precision"] = "32-true"
        small["model"]["init_args"]["loading"] = {"dtype": "float32"}
    data: dict[str, Any] = {"batch_size": 2}
    if recipe["data"]["class_path"] == "datamodules.TeacherSamplesDataModule":
        data |= {"count": 2, "val_count": 2, "sampling": {"steps": 3}, "compute": {"device": "cpu"}}
        data |= {"cache": {"folder": str(folder / "cache")}, "captions": CAPTIONS}
    else:
        images = captioned_images(folder / "images", model.sample_shape()[1] * model.pixels_per_cell)
        source = recipe["data"]["init_args"]["train"]
        place = "path" if "path" in source["init_args"] else "root"
        held_out = {"class_path": "datamodules.FolderRecords", "init_args": {"root": str(images)}}
        data |= {"train": {"init_args": {place: str(images)}}, "val_share": 0.34, "num_workers": 0, "test": held_out}
        data |= {"image_size": model.sample_shape()[1] * model.pixels_per_cell}
        if "buckets" in recipe["data"]["init_args"]:
            data |= {"buckets": {"cell": 8, "cache_dir": str(folder / "sizes")}}
    small["data"] = {"init_args": data}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def walk(name: str, folder: Path, *, compiled: bool = False) -> Path:
    """Fit, resume and test; the recipe's own export is the answer."""
    small = shrunk(name, FAMILIES[name.rpartition("_")[0]](folder / "teacher"), folder)
    if compiled:
        settings = yaml.safe_load(small.read_text())
        settings["model"]["init_args"]["compute"] = {"compile": True}
        small.write_text(yaml.safe_dump(settings))
    command("fit", name, small, "--config", without_export(small), "--trainer.max_steps", "2")
    first = folder / "run" / "lightning_logs" / "version_0"
    half = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    assert half["global_step"] == 2 and half["sparsight"]["stage"] == 0

    again = ("--ckpt_path", str(first / "checkpoints" / "last.ckpt"), "--trainer.enable_model_summary", "false")
    resumed = command("fit", name, small, *again)
    second = first.with_name("version_1")
    assert resumed.trainer.global_step == 4
    check_batches(name, resumed)
    whole = torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)
    assert whole["global_step"] == 4 and whole["sparsight"]["stage"] == len(resumed.model.clock.stages) - 1
    assert any(not torch.equal(whole["state_dict"][key], value) for key, value in half["state_dict"].items())
    assert Image.open(second / "samples" / "step_0000004.png").getbbox()

    tested = command("test", name, small, "--ckpt_path", str(second / "checkpoints" / "last.ckpt"))
    assert 0 < float(tested.trainer.callback_metrics["test/output_relative_l2"]) < 10
    return folder / "run" / "student"


def check_batches(name: str, run: Any) -> None:
    """They have the shape that memory is estimated for, or in buckets about its area; `paper` is what is published."""
    batch = next(iter(run.datamodule.train_dataloader()))
    samples = batch["xt"] if "xt" in batch else run.model.diffusion.prepare(batch)["sample"]
    count, height, width = run.datamodule.batch_shape(run.model.diffusion)
    shape = (12, 20) if name == "sd15_paper" else (height, width)
    assert samples.shape == (count, 4, *shape)
    if name.endswith("paper"):
        assert {"train/to_teacher", "train/to_target", "train/site"} <= run.trainer.callback_metrics.keys()
        mixers = [shell.mixer for shell in run.model.shells.values()]
        assert {mixer.preset for mixer in mixers} == {f"paper_{name.split('_')[0]}"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Walks a recipe, once for all tests of this file; its export."""
    return cache(lambda name: walk(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_fit_resume_test_and_export(name: str, exported: Callable[[str], Path]) -> None:
    assert (exported(name) / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15_24gb", "sdxl_24gb", "pixart_sigma_paper"])
def test_with_compiled_blocks_as_on_a_gpu(name: str, tmp_path: Path) -> None:
    assert read_config(f"experiment/{name}")["model"]["init_args"]["compute"]["compile"] == "auto"
    walk(name, tmp_path, compiled=True)


@pytest.mark.slow
def test_plain_diffusers_draws_with_students(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """A process that cannot import this project loads each export and answers with the same image."""
    check_plain_diffusers_draws({name: exported(name) for name in RECIPES}, tmp_path)
