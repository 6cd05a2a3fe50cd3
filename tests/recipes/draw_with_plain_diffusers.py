"""Run as a script in a process of its own: draws with exports where Sparsight is not installed. See test_recipes.py."""

# ruff: noqa: E402
from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path

PROJECT = ("sparsight", "blocks", "callbacks", "datamodules", "lightning_modules", "lightning")


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] in PROJECT:
            raise ImportError(f"{fullname} must not be needed")


sys.meta_path.insert(0, Absent())

import torch
from diffusers import DiffusionPipeline

ROOT = Path(sys.argv[1])
for wanted in (ROOT / "wanted").iterdir():
    pipeline = DiffusionPipeline.from_pretrained(ROOT / wanted.stem, trust_remote_code=True)
    options = {"use_resolution_binning": False} if type(pipeline).__name__.startswith("PixArt") else {}
    noise = torch.Generator().manual_seed(0)
    images = pipeline("a cat", num_inference_steps=2, generator=noise, output_type="pt", **options).images
    torch.testing.assert_close(images, torch.load(wanted))
print("all drawn")
