"""The pixel-space pipeline of a joint transformer: captions, sampling, exports, and what it is refused with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import deterministic_sampler, sample, starting_noise
from sparsight.diffusion.pipelines.pixel_pipeline import PixelSD3Pipeline
from tests import tiny

CAPTIONS = ["a cat", "a dog", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pixel_sd3_pipeline(tmp_path_factory.mktemp("pipeline") / "teacher")


@pytest.fixture
def model(folder: Path) -> DiffusionModel:
    return DiffusionModel.from_pretrained(str(folder))


def test_padding_is_zero_and_not_part_of_the_mean(model: DiffusionModel) -> None:
    cond = model.conditioner({"caption": CAPTIONS}, (16, 16))
    tokens_BLC, pooled_BC = cond["encoder_hidden_states"], cond["pooled_projections"]
    for row, count in enumerate([6, 6, 2]):  # letters, start and end
        assert torch.equal(tokens_BLC[row, count:], torch.zeros(12 - count, 32))
        torch.testing.assert_close(pooled_BC[row], tokens_BLC[row, :count].mean(0))
    assert not torch.allclose(pooled_BC[0], pooled_BC[1])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_the_pipeline(model: DiffusionModel, guidance: float) -> None:
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(3))
    latents = sample(model, {"caption": CAPTIONS}, noise, steps=3, guidance=guidance)
    parts = model.pipeline.components | {"scheduler": deterministic_sampler(model.pipeline.scheduler)}
    pipeline = PixelSD3Pipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": guidance, "num_inference_steps": 3, "latents": noise, "output_type": "pt"}
    torch.testing.assert_close(model.decode(latents), pipeline(CAPTIONS, **options).images, rtol=1e-4, atol=1e-5)


def test_plain_diffusers_loads_its_export(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    write_pipeline(model, tmp_path / "out", fp16=True)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for name, tensor in model.denoiser.state_dict().items():
        torch.testing.assert_close(loaded.transformer.state_dict()[name], tensor, msg=name)
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a cat", num_inference_steps=1).images[0].size == (16, 16)


def test_untrained_it_predicts_nothing_and_every_branch_is_closed(tmp_path: Path) -> None:
    encoder = str(tiny.save_text_encoder(tmp_path / "bert"))
    options = {"class_names": None, "text_encoder": encoder, "text_tokens": 8}
    pipeline = family_of(tiny.sd3()).begin(tiny.sd3(), FlowMatchEulerDiscreteScheduler(), **options)
    with torch.no_grad():
        output = pipeline.transformer(
            torch.randn(2, 3, 16, 16), timestep=torch.tensor([5.0, 900.0]), **pipeline.conditions(["a cat", ""])
        ).sample
    assert torch.count_nonzero(output) == 0
    with pytest.raises(ValueError, match="predicts flow: give a FlowMatchEulerDiscreteScheduler"):
        family_of(tiny.sd3()).begin(tiny.sd3(), DDPMScheduler(), **options)
    with pytest.raises(ValueError, match="pooled_projection_dim is 16: make it 32"):
        family_of(tiny.sd3()).begin(tiny.sd3(pooled_projection_dim=16), FlowMatchEulerDiscreteScheduler(), **options)
