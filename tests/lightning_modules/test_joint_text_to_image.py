"""Stable Diffusion 3 from text to student: captions, samples, both stages, an export that draws without us."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from blocks import DeltaConvBlock, NeighborhoodAttention
from callbacks import SampleGrid
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import Sampling, sample, starting_noise
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import LossTerms, Stage
from tests.tiny_distillation import trainer
from tests.tiny_drawn import check_plain_diffusers_draws, check_trained
from tests.tiny_sd3 import save_sd3_pipeline

CAPTIONS = ["a cat", "a dog", "a boat", "a hat"]
PLAN = [
    PlanEntry("*.0.attn", partial(DeltaConvBlock, kernel_size=3)),
    PlanEntry("*.attn2", partial(DeltaConvBlock, kernel_size=3)),
    PlanEntry("*", partial(NeighborhoodAttention, kernel_size=3)),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_sd3_pipeline(tmp_path_factory.mktemp("teacher") / "sd3"))


def latents(pipeline: Any, noise: torch.Tensor, *, steps: int, guidance: float) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "output_type": "latent"}
    return pipeline(CAPTIONS[:2], height=32, width=32, **options).images


@pytest.mark.parametrize(("guidance", "dynamic"), [(1.0, False), (2.5, False), (2.5, True)])
def test_what_is_drawn_is_what_diffusers_draws(teacher: str, guidance: float, dynamic: bool) -> None:
    stock = StableDiffusion3Pipeline.from_pretrained(teacher)
    if dynamic:  # the shift is that of the image's size
        stock.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    model = DiffusionModel(stock)
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(2))
    found = sample(model, {"caption": CAPTIONS[:2]}, noise, steps=3, guidance=guidance)
    torch.testing.assert_close(found, latents(stock, noise, steps=3, guidance=guidance), rtol=1e-5, atol=1e-5)


def distillation(teacher: str) -> AttentionDistillation:
    torch.manual_seed(0)
    terms = LossTerms(site_on="residual", timestep_weight="min_snr")
    stages = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=terms, warmup_steps=1)]
    trained = {"projections": True, "init_samples": 2}
    return AttentionDistillation(teacher, stages=stages, plan=PLAN, trained=trained, sampling=Sampling(2))


@pytest.fixture(scope="module")
def trained(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AttentionDistillation]:
    folder, module = tmp_path_factory.mktemp("run"), distillation(teacher)
    options = {
        "captions": CAPTIONS,
        "count": 4,
        "val_count": 2,
        "sampling": {"steps": 2},
        "batch_size": 2,
        "compute": {"device": "cpu"},
    }
    run = trainer(folder, callbacks=[SampleGrid(captions=CAPTIONS[:2], every_n_steps=100)])
    run.fit(
        module, TeacherSamplesDataModule(teacher, mode="samples", cache=CacheOptions(str(folder / "cache")), **options)
    )
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
        kinds=(DiffusionPipeline,),
        pipeline=StableDiffusion3Pipeline,
        latents=partial(latents, steps=2, guidance=2.0),
    )
