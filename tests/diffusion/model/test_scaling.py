"""Latents are scaled as the pipelines of diffusers scale them, and caches know by what."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.identity import codec_identity
from sparsight.diffusion.model.sampling import sample, starting_noise
from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline
from tests import tiny

MEAN, STD = [0.5, -1.0, 0.25, 2.0], [2.0, 0.5, 1.5, 3.0]
SAVE = {"sd": tiny.save_sd_pipeline, "sdxl": tiny.save_sdxl_pipeline, "pixart": tiny.save_pixart_pipeline}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "both": {"latents_mean": MEAN, "latents_std": STD},
    "mean": {"latents_mean": MEAN},
    "shift": {"shift_factor": 0.3},
    "all": {"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.3},
}


@pytest.fixture(scope="module", params=SAVE)
def pipelines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, SAVE[request.param](tmp_path_factory.mktemp(request.param) / "teacher")


def with_settings(folder: Path, settings: dict[str, Any]) -> DiffusionModel:
    path = folder / "vae" / "config.json"
    plain = {key: value for key, value in json.loads(path.read_text()).items() if key not in COMBINATIONS["all"]}
    path.write_text(json.dumps(plain | settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DiffusionModel.from_pretrained(str(folder))


@pytest.mark.parametrize("settings", COMBINATIONS)
def test_decoding_is_the_pipelines_and_encoding_its_inverse(pipelines: tuple[str, Path], settings: str) -> None:
    family, folder = pipelines
    model = with_settings(folder, COMBINATIONS[settings])
    latents = torch.randn(1, *model.sample_shape(), generator=torch.Generator().manual_seed(0))
    # no step of the pipeline but decoding
    pipeline: Any = model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    options = {"use_resolution_binning": False} if family == "pixart" else {}
    seen: list[torch.Tensor] = []
    pipeline.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    final: list[torch.Tensor] = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda *args, **kwargs: final.append(step(*args, **kwargs)[0]) or (final[-1],)
    pipeline("a", num_inference_steps=1, guidance_scale=1.0, latents=latents, output_type="pt", **options)
    model.decode(final[-1])
    torch.testing.assert_close(seen[1], seen[0])
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted = pipeline.vae.encode(images).latent_dist.mean
    model.decode(model.encode(images))
    torch.testing.assert_close(seen[2], wanted, atol=1e-5, rtol=1e-4)


def test_caches_made_with_other_scaling_are_not_used(tmp_path: Path) -> None:
    folder = tiny.save_sdxl_pipeline(tmp_path / "teacher")
    identities = {name: codec_identity(with_settings(folder, s).pipeline)["vae"] for name, s in COMBINATIONS.items()}
    assert identities["both"] != identities["none"] == identities["mean"] == identities["shift"]
    assert set(identities["none"]) == {"weights", "dtype", "scaling_factor", "shift_factor"}, (
        "as earlier versions wrote"
    )
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents_mean": MEAN[::-1], "latents_std": STD}))
    assert codec_identity(DiffusionModel.from_pretrained(str(folder)).pipeline)["vae"] != identities["both"]


def test_what_a_pipeline_does_not_use_is_said(tmp_path: Path) -> None:
    folder = tiny.save_sd_pipeline(tmp_path / "teacher")
    with_settings(folder, COMBINATIONS["all"])
    with pytest.warns(
        UserWarning, match="shift_factor and latents_mean and latents_std, which StableDiffusionPipeline"
    ):
        DiffusionModel.from_pretrained(str(folder))


@pytest.mark.parametrize("steps", [1, 4])
def test_noise_prediction_without_a_last_signal_is_told_and_draws_numbers(steps: int) -> None:
    def model_of(prediction: str) -> DiffusionModel:
        scheduler = DDIMScheduler(
            prediction_type=prediction, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
        )
        return DiffusionModel(PixelDiTPipeline(tiny.dit(), scheduler))

    with pytest.warns(UserWarning, match=r"rescale_betas_zero_snr.*prediction_type: v_prediction"):
        blind = model_of("epsilon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound = model_of("v_prediction")
    for model in (blind, sound):
        noise = starting_noise(model.sample_shape(), seed=0, index=torch.arange(2))
        assert sample(model, {"label": torch.tensor([1, 2])}, noise, steps=steps, guidance=2.0).isfinite().all()
