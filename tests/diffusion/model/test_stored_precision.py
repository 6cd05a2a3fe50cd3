"""Teachers whose weights are stored in half precision: every family, plain and as a variant, through every verb."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import DenoiserTraining
from sparsight.command.cli import main
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.model.sampling import Sampling, sample, starting_noise
from sparsight.diffusion.surgery.shell import Mode
from tests import tiny
from tests.tiny_distillation import distillation
from tests.tiny_rows import few

SAVE: dict[str, Callable[[Path], Path]] = {
    "sd": tiny.save_sd_pipeline,
    "sdxl": tiny.save_sdxl_pipeline,
    "pixart": tiny.save_pixart_pipeline,
    "pixel_dit": tiny.save_pixel_pipeline,
    "pixel_unet": tiny.save_pixel_unet_pipeline,
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=few(SAVE, "sd", "pixel_dit"))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, and a folder with its pipeline as ``whole``, ``fp16`` and ``bf16``."""
    folder = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](folder / "whole")
    for name, dtype in DTYPES.items():
        load_pipeline(str(folder / "whole")).to(dtype).save_pretrained(folder / name)
    return request.param, folder


def batch_of(family: str) -> dict[str, Any]:
    channels, side = (1, 8) if family == "pixel_dit" else (3, 16)
    batch = {"image": torch.rand(2, channels, side, side) * 2 - 1, "index": torch.arange(2)}
    return batch | ({"label": torch.tensor([1, 2])} if family == "pixel_dit" else {"caption": ["a", "b"]})


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_encoded_drawn_from_distilled_and_trained(stored: tuple[str, Path], dtype: str) -> None:
    family, folder = stored
    batch = batch_of(family)
    plain = DiffusionModel.from_pretrained(str(folder / "whole"))
    half = DiffusionModel(load_pipeline(str(folder / dtype)).to(DTYPES[dtype]))  # diffusers loads some parts in fp32
    assert next(half.denoiser.parameters()).dtype == DTYPES[dtype]
    noise = starting_noise(plain.sample_shape(), seed=0, index=batch["index"])
    drawn = [model.decode(sample(model, batch, noise, steps=2, guidance=2.0)) for model in (plain, half)]
    assert drawn[1].dtype == torch.float32 and drawn[1].isfinite().all()
    assert (drawn[0] - drawn[1]).abs().mean() < 0.05
    encoded = [model.prepare(batch)["sample"] for model in (plain, half)]
    assert encoded[1].dtype == torch.float32
    torch.testing.assert_close(encoded[0], encoded[1], atol=0.05, rtol=0.05)

    for teacher_dtype in ("float32", "bfloat16"):
        module = distillation(str(folder / dtype), loading={"dtype": teacher_dtype})
        assert next(module.denoiser.parameters()).dtype == getattr(torch, teacher_dtype)
        noised = module.noised(batch, step=0, condition_dropout=0.5)
        terms = module.distiller.layerwise(noised) | module.distiller.end_to_end(noised, module.stage.terms)
        torch.stack(list(terms.values())).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.requires_grad]
        assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
        assert module.distiller.predict(noised, Mode.STUDENT).isfinite().all()
        assert module.draw(batch, batch["index"]).isfinite().all()
    training = DenoiserTraining(str(folder / dtype), schedule={"warmup_steps": 1}, sampling=Sampling(2))
    loss = training._loss(training.noised(batch, step=0, condition_dropout=0.5))
    loss.backward()
    assert loss.isfinite() and all(p.dtype == torch.float32 for p in training.denoiser.parameters())


@pytest.mark.usefixtures("reload_here")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_verb_takes_it(stored: tuple[str, Path], dtype: str, tmp_path: Path) -> None:
    family, folder = stored
    conditions = {} if family == "pixel_dit" else {"captions": ["a", "b"]}
    teacher, run = str(folder / dtype), str(tmp_path / "run")
    data = {"teacher": teacher, "count": 4, "val_count": 2, "sampling": {"steps": 2}, "batch_size": 2, **conditions}
    config = _config(teacher, run, data | {"cache": {"folder": str(tmp_path / "cache")}})
    path = tmp_path / "config.yaml"
    path.write_text(config)
    main(["fit", "--config", str(path)])
    (saved,) = Path(run).rglob("last.ckpt")
    main(["validate", "--config", str(path), "--ckpt_path", str(saved)])
    main(["predict", "--config", str(path), "--ckpt_path", str(saved), "--images.folder", str(tmp_path / "images")])
    assert list((tmp_path / "images").glob("*.png"))
    export = ["--ckpt_path", str(saved), "--weights", "raw", "--output", str(tmp_path / "export")]
    main(["export", "--config", str(path), *export])
    assert DiffusionModel.from_pretrained(str(tmp_path / "export"))
    main(["benchmark", "--config", str(path), "--tokens", "[16]", "--runs", "1", "--output", str(tmp_path / "bench")])


def _config(teacher: str, run: str, data: dict[str, Any]) -> str:
    import yaml

    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    stages = [{"objective": o, "steps": 2, "warmup_steps": 1} for o in ("layerwise", "end_to_end")]
    mixer = {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3}}
    model = {
        "teacher": teacher,
        "mixer": mixer,
        "stages": stages,
        "trained": {"init_samples": 2},
        "sampling": {"steps": 2},
    }
    return yaml.safe_dump(
        {
            "trainer": {
                "default_root_dir": run,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "callbacks": [saver],
            },
            "model": {"class_path": "AttentionDistillation", "init_args": model},
            "data": {"class_path": "TeacherSamplesDataModule", "init_args": data},
        }
    )


def test_a_folder_with_weights_of_a_variant_alone_says_which(tmp_path: Path) -> None:
    tiny.save_sd_pipeline(tmp_path / "whole")
    pipeline = load_pipeline(str(tmp_path / "whole")).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="50KB")
    with pytest.raises(FileNotFoundError, match=r"has no plain weights of its text_encoder: set variant to fp16$"):
        distillation(str(tmp_path / "half"))
    with pytest.raises(FileNotFoundError, match=r"no weights of variant ema, and no plain ones .* to fp16"):
        DenoiserTraining(str(tmp_path / "half"), loading={"variant": "ema"})
    training = DenoiserTraining(str(tmp_path / "half"), loading={"variant": "fp16"})
    assert training.denoiser.dtype == torch.float32 and training.diffusion.vae.dtype == torch.float32
    shutil.copytree(tmp_path / "whole" / "unet", tmp_path / "half" / "unet", dirs_exist_ok=True)
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        load_pipeline(str(tmp_path / "half"))
