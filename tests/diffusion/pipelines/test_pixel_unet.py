"""The pixel-space U-Net pipeline: loading, captions, sampling, exports with and without a student in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from blocks import DeltaConvBlock
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.families.conditioning import Captions, concatenate_conditions, drop_condition
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.model.sampling import deterministic_sampler, sample, starting_noise
from sparsight.diffusion.pipelines.pixel_pipeline import PixelUNetPipeline
from sparsight.diffusion.surgery.replace import replace
from tests import tiny

CAPTIONS = ["a cat", "a dog", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pixel_unet_pipeline(tmp_path_factory.mktemp("pipeline") / "teacher")


@pytest.fixture
def model(folder: Path) -> DiffusionModel:
    return DiffusionModel.from_pretrained(str(folder))


def draw(pipeline: DiffusionPipeline, guidance: float = 2.0) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": guidance, "generator": noise, "output_type": "pt"}
    return pipeline(CAPTIONS[:2], **options).images


def test_captions_become_embeddings_and_masks_and_none_is_the_empty_one(model: DiffusionModel) -> None:
    assert isinstance(model.conditioner, Captions) and model.sample_shape() == (3, 16, 16)
    batch = {"image": torch.zeros(3, 3, 16, 16), "caption": CAPTIONS, "index": torch.arange(3)}
    prepared = model.prepare(batch)
    cond, uncond = prepared["cond"], prepared["uncond"]
    assert torch.equal(prepared["sample"], batch["image"])
    assert cond["encoder_hidden_states"].shape == (3, 12, 32)
    assert cond["encoder_attention_mask"].sum(1).tolist() == [6, 6, 2], "letters, start and end"
    for name, part in cond.items():
        assert torch.equal(part[2], uncond[name][2]) and part.shape == uncond[name].shape
        assert not torch.equal(part[0], uncond[name][0])
    dropped = drop_condition(cond, uncond, torch.tensor([True, False, True]))
    both = concatenate_conditions(dropped, cond)
    assert both["encoder_attention_mask"].sum(1).tolist() == [2, 6, 2, 6, 6, 2]


def test_the_mask_hides_what_padding_holds(model: DiffusionModel) -> None:
    cond = model.conditioner({"caption": CAPTIONS}, (16, 16))
    noisy = cond["encoder_hidden_states"].clone()
    noisy[cond["encoder_attention_mask"] == 0] = 100.0
    x, t = torch.randn(3, 3, 16, 16), torch.full((3,), 500)
    with torch.no_grad():
        plain = predict(model.denoiser, x, t, cond)
        torch.testing.assert_close(predict(model.denoiser, x, t, cond | {"encoder_hidden_states": noisy}), plain)
        open_to_all = cond | {"encoder_attention_mask": torch.ones_like(cond["encoder_attention_mask"])}
        assert not torch.allclose(predict(model.denoiser, x, t, open_to_all), plain)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_the_pipeline(model: DiffusionModel, guidance: float) -> None:
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(3))
    latents = sample(model, {"caption": CAPTIONS}, noise, steps=3, guidance=guidance)
    parts = model.pipeline.components | {"scheduler": deterministic_sampler(model.pipeline.scheduler)}
    pipeline = PixelUNetPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": guidance, "num_inference_steps": 3, "latents": noise, "output_type": "pt"}
    torch.testing.assert_close(model.decode(latents), pipeline(CAPTIONS, **options).images, rtol=1e-4, atol=1e-5)


def test_one_caption_may_stand_alone(model: DiffusionModel) -> None:
    (image,) = model.pipeline("a cat", num_inference_steps=1).images
    assert image.size == (16, 16) and image.mode == "RGB"


@pytest.mark.parametrize("with_student", [False, True])
def test_an_export_draws_the_same_by_every_way_of_loading(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_student: bool
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model.pipeline.text_encoder.to(torch.bfloat16).float()  # rounded
    teacher = draw(model.pipeline)
    if with_student:
        replace(model.denoiser, partial(DeltaConvBlock, kernel_size=3))
        for name, parameter in model.denoiser.named_parameters():
            if ".student.mixer." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.pipeline.text_encoder.to(torch.bfloat16)
    write_pipeline(model, tmp_path / "out", fp16=True)
    model.pipeline.text_encoder.float()
    ours = draw(load_pipeline(str(tmp_path / "out")))
    theirs = draw(DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True))
    torch.testing.assert_close(ours, theirs)
    assert torch.allclose(ours, teacher, atol=1e-4) is not with_student
    half = load_pipeline(str(tmp_path / "out"), variant="fp16")
    torch.testing.assert_close(draw(half), ours, rtol=0, atol=0.02)
    saved = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert half.tokenizer.model_max_length == 12
    assert not any(str(tmp_path.parent) in path.read_text() for path in (tmp_path / "out").rglob("*.json"))
