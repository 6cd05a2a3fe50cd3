"""Recipes for FLUX.1, Stable Diffusion 3.5 and Wan, walked through with tiny pipelines of their classes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

from sparsight.command.arguments import read_config
from sparsight.common.quantised.weights import has_codes
from sparsight.diffusion.model.timesteps import Timesteps
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_recipes import command
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

RADIUS, TILE = {"radius": 2}, {"tile": [1, 2, 2]}
RECIPES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], list[int], dict[str, Any]]] = {
    "flux_dev_24gb": (save_flux_pipeline, RADIUS, [8, 12], {"height": 16, "width": 24}),
    "flux_dev_80gb": (save_flux_pipeline, RADIUS, [8, 12], {"height": 16, "width": 24}),
    "sd35_medium_24gb": (save_sd3_pipeline, RADIUS, [8, 12], {"height": 16, "width": 24}),
    "sd35_medium_80gb": (save_sd3_pipeline, RADIUS, [8, 12], {"height": 16, "width": 24}),
    "wan_1_3b_24gb": (save_wan_pipeline, TILE, [3, 4, 4], {"height": 32, "width": 32, "num_frames": 5}),
    "wan_1_3b_80gb": (save_wan_pipeline, TILE, [3, 4, 4], {"height": 32, "width": 32, "num_frames": 5}),
    "wan_14b_24gb": (save_wan_pipeline, TILE, [3, 4, 4], {"height": 32, "width": 32, "num_frames": 5}),
    "wan_14b_80gb": (save_wan_pipeline, TILE, [3, 4, 4], {"height": 32, "width": 32, "num_frames": 5}),
}


COMPILED = ["flux_dev_80gb", "sd35_medium_24gb", "wan_1_3b_24gb"]  # as on a GPU; one of each kind of block


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiled"), [*((name, "auto") for name in RECIPES), *((name, True) for name in COMPILED)]
)
@pytest.mark.usefixtures("reload_here")
def test_fit_test_and_export(name: str, compiled: bool | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, mixer, size, sides = RECIPES[name]
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    teacher = save(tmp_path / "teacher")
    recipe = read_config(f"experiment/{name}")
    in_8_bits = recipe["model"]["init_args"].get("loading", {}).get("quantization") == "int8"
    if in_8_bits and importlib.util.find_spec("torchao") is None:
        pytest.skip("needs torchao")
    assert recipe["model"]["init_args"]["compute"]["compile"] == "auto"
    (stage,) = recipe["model"]["init_args"]["stages"]
    small = {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "enable_progress_bar": False,
            "val_check_interval": 2,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": 1,
        },
        "model": {
            "init_args": {
                "teacher": str(teacher),
                "mixer": {"init_args": mixer},
                "stages": [stage | {"steps": 4, "warmup_steps": 1}],
                "sampling": {"steps": 2, "size": size},
                "compute": {"compile": compiled},
            }
        },
        "data": {
            "init_args": {
                "teacher": str(teacher),
                "count": 2,
                "batch_size": 2,
                "val_count": 2,
                "sampling": {"steps": 2, "size": size},
                "compute": {"device": "cpu"},
                "cache": {"folder": str(tmp_path / "cache")},
                "captions": ["a cat", "a dog"],
            }
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    fitted = command("fit", name, path)
    assert fitted.trainer.global_step == 4
    assert fitted.model.stage.timesteps == Timesteps("logit_normal")
    told = recipe["model"]["init_args"]["sampling"]["guidance_scale"]
    assert fitted.datamodule.teacher_dtype == "bfloat16" and has_codes(fitted.model.denoiser) == in_8_bits
    assert fitted.datamodule.teacher_quantization == ("int8" if in_8_bits else None)
    assert fitted.model.diffusion.guidance == fitted.datamodule.plan.guidance == told
    assert recipe["data"]["init_args"]["count"] == stage["steps"] == 10_000
    assert bool(fitted.model.rest_names) == ("lora" in recipe["model"]["init_args"].get("trained", {}))
    assert {"train/to_teacher", "train/to_target", "train/site"} <= fitted.trainer.callback_metrics.keys()
    logs = tmp_path / "run" / "lightning_logs" / "version_0"
    costs = json.loads((logs / "costs.json").read_text())["sites"]
    tokens = [side // 2 for side in size[-2:]]
    assert all([site["height"], site["width"]] == tokens for site in costs), "at the size that is drawn"
    tested = command("test", name, path, "--ckpt_path", str(logs / "checkpoints" / "last.ckpt"))
    assert 0 < float(tested.trainer.callback_metrics["test/output_relative_l2"]) < 10
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run" / "student", trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("a cat", num_inference_steps=2, generator=generator, output_type="pt", **sides)[0]
    assert drawn.shape[-2:] == (sides["height"], sides["width"]) and torch.isfinite(drawn).all()
