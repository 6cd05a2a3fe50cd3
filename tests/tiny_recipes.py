"""Shipped recipes through the command, made small by a configuration on top."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from sparsight.command.cli import main
from sparsight.diffusion.model.load import load_pipeline


def command(verb: str, name: str, small: Path, *options: str) -> Any:
    return main([verb, "--config", f"experiment/{name}", "--config", str(small), *options])


def without_export(small: Path) -> str:
    """A run that is broken off exports nothing; here it ends early instead."""
    settings = yaml.safe_load(small.read_text())
    callbacks = [c for c in settings["trainer"]["callbacks"] if c["class_path"] != "callbacks.ExportAtEnd"]
    path = small.with_name("without_export.yaml")
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return str(path)


def draw(pipeline: Any) -> torch.Tensor:
    """One image from fixed noise, as a user of diffusers draws it."""
    options = {"use_resolution_binning": False} if type(pipeline).__name__.startswith("PixArt") else {}
    noise = torch.Generator().manual_seed(0)
    return pipeline("a cat", num_inference_steps=2, generator=noise, output_type="pt", **options).images


def check_plain_diffusers_draws(exports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "wanted").mkdir(parents=True)
    for name, folder in exports.items():
        torch.save(draw(load_pipeline(str(folder))), tmp_path / "wanted" / f"{name}.pt")
        (tmp_path / name).symlink_to(folder)
    script = Path(__file__).with_name("recipes") / "draw_with_plain_diffusers.py"
    surroundings = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=tmp_path, env=surroundings, capture_output=True, text=True
    )
    assert process.returncode == 0 and "all drawn" in process.stdout, process.stderr


def walk(name: str, small: Path, *options: str) -> Path:
    """Fit, resume and test; the recipe's own export is the answer."""
    run = small.with_suffix("") / "lightning_logs"
    command("fit", name, small, "--config", without_export(small), "--trainer.max_steps", "2")
    last = Path("checkpoints") / "last.ckpt"
    half = torch.load(run / "version_0" / last, weights_only=True)
    resumed = command("fit", name, small, "--ckpt_path", str(run / "version_0" / last), *options)
    whole = torch.load(run / "version_1" / last, weights_only=True)
    assert half["global_step"] == 2 and whole["global_step"] == resumed.trainer.global_step == 4
    assert half["state_dict"].keys() == whole["state_dict"].keys()
    assert not any("text_encoder" in key for key in whole["state_dict"])
    assert any(not torch.equal(whole["state_dict"][key], value) for key, value in half["state_dict"].items())
    assert Image.open(run / "version_1" / "samples" / "step_0000004.png").getbbox()
    tested = command("test", name, small, "--ckpt_path", str(run / "version_1" / last))
    measured = [float(value) for key, value in tested.trainer.callback_metrics.items() if key.startswith("test/")]
    assert measured and all(0 < value < 10 for value in measured)
    return small.with_suffix("") / "export"
