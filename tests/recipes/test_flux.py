"""The recipe for FLUX.1, walked through with a tiny pipeline of its classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FluxPipeline
from PIL import Image

from sparsight.diffusion.model.timesteps import Timesteps
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_recipes import command

SIZE = [8, 12]
RECIPE = "flux_dev_80gb"


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_fit_resume_test_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    teacher = save_flux_pipeline(tmp_path / "teacher")
    recipe = yaml.safe_load(Path(f"configs/experiment/{RECIPE}.yaml").read_text())
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
                "mixer": {"init_args": {"radius": 2}},
                "stages": [stage | {"steps": 4, "warmup_steps": 1}],
                "sampling": {"steps": 2, "size": SIZE},
            }
        },
        "data": {
            "init_args": {
                "teacher": str(teacher),
                "size": SIZE,
                "count": 2,
                "val_count": 2,
                "steps": 2,
                "device": "cpu",
                "cache": {"folder": str(tmp_path / "cache")},
                "captions": ["a cat", "a dog"],
            }
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    fitted = command("fit", RECIPE, path)
    assert fitted.trainer.global_step == 4
    assert fitted.model.stage.timesteps == Timesteps("logit_normal")
    assert fitted.model.diffusion.guidance == 3.5
    assert {"train/to_teacher", "train/to_target", "train/site"} <= fitted.trainer.callback_metrics.keys()
    logs = tmp_path / "run" / "lightning_logs" / "version_0"
    tested = command("test", RECIPE, path, "--ckpt_path", str(logs / "checkpoints" / "last.ckpt"))
    assert 0 < float(tested.trainer.callback_metrics["test/output_relative_l2"]) < 10
    pipeline = FluxPipeline.from_pretrained(tmp_path / "run" / "student", trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("a cat", height=16, width=24, num_inference_steps=2, generator=generator).images[0]
    assert isinstance(drawn, Image.Image) and drawn.size == (24, 16)
