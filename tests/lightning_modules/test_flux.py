"""FLUX.1 from text to student: teacher samples, both stages, an export that draws without us."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from blocks import DeltaConvBlock, NeighborhoodAttention
from callbacks import SampleGrid
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.families.conditioning import nest_condition
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.encoding import encode_batches
from sparsight.diffusion.model.sampling import Sampling, sample, starting_noise
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import LossTerms, Stage
from tests.tiny_distillation import trainer
from tests.tiny_drawn import check_plain_diffusers_draws, check_trained
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_rows import few

CAPTIONS = ["a cat", "a dog", "a boat", "a hat"]
SIZE = (8, 12)  # of latents, 16x24 pixels
PLAN = [
    PlanEntry("transformer_blocks.*", partial(DeltaConvBlock, kernel_size=3)),
    PlanEntry("*.1.attn", partial(DeltaConvBlock, kernel_size=3)),
    PlanEntry("*", partial(NeighborhoodAttention, kernel_size=3)),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_flux_pipeline(tmp_path_factory.mktemp("teacher") / "flux"))


def latents(pipeline: Any, noise: torch.Tensor, *, steps: int, **options: Any) -> torch.Tensor:
    """What diffusers' own pipeline draws, unpacked."""
    pipeline.set_progress_bar_config(disable=True)
    height, width = (2 * side for side in noise.shape[-2:])
    packed = pipeline._pack_latents(noise, *noise.shape)
    options |= {"num_inference_steps": steps, "latents": packed, "output_type": "latent"}
    drawn = pipeline(CAPTIONS[:2], height=height, width=width, **options).images
    return pipeline._unpack_latents(drawn, height, width, pipeline.vae_scale_factor)


ROWS = [  # guidance as an input; a shift by the size, a fixed one, noise levels of the scheduler's own
    (True, {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 1.4}),
    (True, {"use_dynamic_shifting": True}),
    (True, {"shift": 3.0}),
    (False, {"shift": 1.0}),
    (False, {"use_dynamic_shifting": True}),
]


@pytest.mark.parametrize(("embeds", "scheduler"), few(ROWS, ROWS[0], ROWS[3]))
def test_what_is_drawn_is_what_diffusers_draws(embeds: bool, scheduler: dict[str, Any], tmp_path: Path) -> None:
    folder = save_flux_pipeline(tmp_path / "flux", guidance_embeds=embeds, scheduler=scheduler)
    stock = FluxPipeline.from_pretrained(folder)
    model = DiffusionModel(stock)
    for size in ((8, 12), (16, 8)):
        model.size = size
        noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(2))
        # what is no input of [schnell] is drawn by a second pass without a caption, as the pipeline's true guidance
        told = {"guidance_scale": 2.5} if embeds else {"true_cfg_scale": 2.5, "negative_prompt": [""] * 2}
        found = sample(model, {"caption": CAPTIONS[:2]}, noise, steps=3, guidance=2.5)
        torch.testing.assert_close(found, latents(stock, noise, steps=3, **told), rtol=1e-5, atol=1e-5)
        plain = sample(model, {"caption": CAPTIONS[:2]}, noise, steps=3, guidance=1.0)
        wanted = latents(stock, noise, steps=3, guidance_scale=1.0)
        torch.testing.assert_close(plain, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain, found, atol=1e-4)


def distillation(teacher: str, objective: LossTerms | None = None, **options: Any) -> AttentionDistillation:
    torch.manual_seed(0)
    terms = objective or LossTerms(site_on="residual", to_target=0.5)
    stages = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=terms, warmup_steps=1)]
    defaults = {"plan": PLAN, "trained": {"projections": True, "init_samples": 2}, "sampling": Sampling(2, size=SIZE)}
    return AttentionDistillation(teacher, stages=stages, **defaults | options)


@pytest.fixture(scope="module")
def trained(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AttentionDistillation]:
    folder, module = tmp_path_factory.mktemp("run"), distillation(teacher)
    options = {
        "captions": CAPTIONS,
        "count": 4,
        "val_count": 2,
        "sampling": {"steps": 2, "size": SIZE},
        "batch_size": 2,
        "compute": {"device": "cpu"},
    }
    data = TeacherSamplesDataModule(teacher, mode="samples", cache=CacheOptions(str(folder / "cache")), **options)
    run = trainer(folder, callbacks=[SampleGrid(captions=CAPTIONS[:2], every_n_steps=100)])
    run.fit(module, data)
    assert run.global_step == 4
    assert 0 < float(run.callback_metrics["val/output_relative_l2"]) < 10
    return folder, module


def test_both_stages_train_and_a_grid_is_drawn(trained: tuple[Path, AttentionDistillation], teacher: str) -> None:
    check_trained(*trained, distillation(teacher))


def test_plain_diffusers_draws_as_the_student(
    trained: tuple[Path, AttentionDistillation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plain_diffusers_draws(
        trained[1],
        tmp_path,
        monkeypatch,
        captions=CAPTIONS[:2],
        kinds=(DiffusionPipeline, FluxPipeline),
        pipeline=FluxPipeline,
        latents=partial(latents, steps=2, guidance_scale=2.0),
    )


def test_two_sizes_in_a_run_and_guidance_as_an_input(teacher: str) -> None:
    module = distillation(teacher, sampling=Sampling(2, guidance_scale=4.0, size=SIZE))
    seen: list[Any] = []
    module.denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((kwargs["guidance"], kwargs["img_ids"][-1, 1:].tolist())), with_kwargs=True
    )
    for size in (SIZE, SIZE[::-1], (8, 8)):
        batch = {"sample": torch.randn(2, 4, *size), "caption": CAPTIONS[:2], "index": torch.arange(2)}
        noised = module.noised(batch, step=0, condition_dropout=0.5)
        for terms in (
            module.distiller.layerwise(noised),
            module.distiller.end_to_end(noised, module.clock.stages[1].terms),
        ):
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            assert loss.isfinite() and loss > 0
        assert seen[-1][1] == [size[0] / 2 - 1, size[1] / 2 - 1]
    assert all(torch.equal(guidance, torch.full((2,), 4.0)) for guidance, _ in seen)


def test_images_become_the_latents_that_the_pipeline_decodes(teacher: str) -> None:
    model = DiffusionModel.from_pretrained(teacher)
    batch = {"image": torch.rand(2, 3, 16, 24) * 2 - 1, "caption": CAPTIONS[:2], "index": torch.arange(2)}
    prepared = model.prepare(batch)
    assert prepared["sample"].shape == (2, 4, *SIZE) and torch.equal(
        prepared["cond"]["guidance"], torch.full((2,), 3.5)
    )
    with torch.no_grad():
        mean = model.vae.encode(batch["image"]).latent_dist.mean
    torch.testing.assert_close(prepared["sample"], (mean - 0.1) * 0.4)
    rows = encode_batches(model, [batch], mirrored=False, dtype=torch.float32)
    cached = model.prepare(
        {"sample": rows["sample"][:, 0], "cond": nest_condition(rows, "cond"), "index": rows["index"]}
        | {"uncond": prepared["uncond"]}
    )
    assert prepared["cond"].keys() == cached["cond"].keys()
    assert all(torch.equal(part, cached["cond"][name]) for name, part in prepared["cond"].items())


def test_sizes_and_pipelines_that_do_not_fit_are_refused(teacher: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sampling\.size is \(8, 9\); allowed: 2 sides that are multiples of"):
        distillation(teacher, sampling=Sampling(size=(8, 9)))
    from diffusers import FluxFillPipeline, FluxKontextPipeline

    parts = FluxPipeline.from_pretrained(teacher).components
    images = {name: parts.pop(name) for name in ("image_encoder", "feature_extractor")}
    for kind, options in ((FluxFillPipeline, {}), (FluxKontextPipeline, images)):
        model = DiffusionModel(kind(**parts, **options))
        with pytest.raises(ValueError, match=rf"{kind.__name__} is not supported"):
            _ = model.conditioner
