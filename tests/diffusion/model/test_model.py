"""Loading, conditioning and sampling of pixel-space DiT pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from sparsight.diffusion.families.conditioning import concatenate_conditions, drop_condition
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.model.sampling import deterministic_sampler, sample, starting_noise
from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline
from tests import tiny


@pytest.fixture
def model(tmp_path: Path) -> DiffusionModel:
    return DiffusionModel.from_pretrained(str(tiny.save_pixel_pipeline(tmp_path / "teacher")))


def test_missing_and_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        load_pipeline(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pipeline(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no/such"):
        load_pipeline("no/such")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000, '{"_class_name": "caf\xe9"}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model_index\.json is (damaged|not JSON)"):
        load_pipeline(str(tmp_path))


def test_label_dropout_inside_the_denoiser_is_off(model: DiffusionModel) -> None:
    model.denoiser.train()
    x, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    first, second = (predict(model.denoiser, x, torch.full((16,), 9), {"class_labels": labels}) for _ in range(2))
    assert torch.equal(first, second)


def test_batches_keep_the_contract(model: DiffusionModel) -> None:
    batch = {"image": torch.randn(3, 1, 8, 8), "label": torch.tensor([1, 2, 3]), "index": torch.arange(3)}
    prepared = model.prepare(batch)
    assert set(prepared) == {"sample", "cond", "uncond", "index"}
    assert torch.equal(prepared["sample"], batch["image"])
    assert prepared["uncond"]["class_labels"].tolist() == [10, 10, 10]
    dropped = drop_condition(prepared["cond"], prepared["uncond"], torch.tensor([True, False, True]))
    assert dropped["class_labels"].tolist() == [10, 2, 10]
    assert concatenate_conditions(prepared["cond"], dropped)["class_labels"].tolist() == [1, 2, 3, 10, 2, 10]
    with pytest.raises(ValueError, match="conditioned on 'label'"):
        model.prepare({"image": batch["image"], "caption": ["a"] * 3, "index": torch.arange(3)})
    with pytest.raises(ValueError, match="do not fit a denoiser of 10 classes"):
        model.prepare(batch | {"label": torch.tensor([1, 2, 12])})


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_the_pipeline(model: DiffusionModel, guidance: float) -> None:
    labels = [3, 1, 4]
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(3))
    latents = sample(model, {"label": torch.tensor(labels)}, noise, steps=4, guidance=guidance)
    pipeline = PixelDiTPipeline(model.denoiser, deterministic_sampler(model.pipeline.scheduler))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(labels, guidance_scale=guidance, num_inference_steps=4, latents=noise, output_type="pt").images
    torch.testing.assert_close(model.decode(latents), images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sdxl_with_the_empty_caption", "pixart"])
def test_text_to_image_equals_the_pipelines_of_diffusers(family: str, guidance: float, tmp_path: Path) -> None:
    save = {"sd": tiny.save_sd_pipeline, "pixart": tiny.save_pixart_pipeline}.get(family, tiny.save_sdxl_pipeline)
    model = DiffusionModel.from_pretrained(str(save(tmp_path / "pipeline")))
    pipeline, captions = model.pipeline, ["a cat", "a dog"]
    if family == "sdxl_with_the_empty_caption":
        pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(2))
    images = model.decode(sample(model, {"caption": captions}, noise, steps=3, guidance=guidance))
    pipeline.scheduler = deterministic_sampler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"use_resolution_binning": False} if family == "pixart" else {}
    arguments = {"guidance_scale": guidance, "num_inference_steps": 3, "latents": noise.clone(), "output_type": "pt"}
    theirs = pipeline(captions, **arguments, **options).images
    torch.testing.assert_close(images, theirs, rtol=1e-4, atol=1e-4)
    if guidance != 1.0:  # the branch without a condition has a say
        plain = model.decode(sample(model, {"caption": captions}, noise, steps=3, guidance=1.0))
        assert (images - plain).abs().max() > 1e-3


def test_a_generator_makes_noisy_samplers_repeatable(model: DiffusionModel) -> None:
    pipeline = model.pipeline
    pipeline.set_progress_bar_config(disable=True)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipeline([3, 1], num_inference_steps=3, generator=generator, output_type="pt").images

    assert torch.equal(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1))


@pytest.mark.parametrize("scheduler", [DDPMScheduler(prediction_type="epsilon"), FlowMatchEulerDiscreteScheduler()])
def test_the_sampler_finds_the_data_when_the_denoiser_is_perfect(scheduler: object) -> None:
    """A denoiser that knows x_0 must bring any noise back to it."""
    pipeline = PixelDiTPipeline(tiny.dit(), scheduler)
    model = DiffusionModel(pipeline)
    clean = torch.rand(2, 1, 8, 8) * 2 - 1
    process = model.process

    class Perfect(DiTTransformer2DModel):
        def forward(self, x: torch.Tensor, timestep: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
            level = process.level(timestep)
            alpha = process._alpha_T[level].view(-1, 1, 1, 1)
            sigma = process._sigma_T[level].view(-1, 1, 1, 1)
            noise = (x - alpha * clean) / sigma
            return (process.target(clean, noise, level),)

    pipeline.register_modules(transformer=Perfect.from_config(model.denoiser.config))
    noise = starting_noise((1, 8, 8), seed=0, index=torch.arange(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsight.diffusion.model.diffusion_model.conditioner_for", lambda *_: lambda batch, size: {})
        found = sample(model, {}, noise, steps=10, guidance=1.0)
    torch.testing.assert_close(found, clean, rtol=0, atol=0.05)


def test_drawing_keeps_nothing_for_a_backward_pass(tmp_path: Path) -> None:
    """Memory would grow with every sampler step."""
    model = DiffusionModel.from_pretrained(str(tiny.save_pixel_pipeline(tmp_path / "teacher")))
    model.denoiser.requires_grad_(True)
    noise = starting_noise(model.sample_shape(), seed=0, index=torch.arange(2))
    drawn = sample(model, {"label": torch.tensor([1, 2])}, noise, steps=2, guidance=2.0)
    assert not drawn.requires_grad


def test_large_images_are_decoded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionModel.from_pretrained(str(tiny.save_sd_pipeline(tmp_path / "sd")))
    latents = torch.randn(3, 4, 8, 12)  # 16x24 pixels
    together, counts = model.decode(latents), list[int]()
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda part: counts.append(len(part)) or decode(part))
    for most, wanted in ((16 * 24, [1, 1, 1]), (2 * 16 * 24, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr("sparsight.diffusion.model.diffusion_model.DECODED_PIXELS", most)
        counts.clear()
        torch.testing.assert_close(model.decode(latents), together)
        assert counts == wanted
