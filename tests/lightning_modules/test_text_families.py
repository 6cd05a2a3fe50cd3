"""FLUX.1, Stable Diffusion 3 and Wan alike: images with captions, two sizes in a run, resuming, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from blocks import DeltaConvBlock, Grid, LinearAttention, NeighborhoodAttention
from callbacks import GenerationMetrics
from datamodules import (
    AspectBuckets,
    FolderRecords,
    ImageDataModule,
    TeacherSamplesDataModule,
)
from lightning_modules import AttentionDistillation
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import LossTerms, Stage
from sparsight.evaluation.images import (
    CLIPScore,
    FrechetDistance,
    KernelDistance,
    Samples,
    TeacherError,
    in_batches,
)
from sparsight.evaluation.images.set_distance import SetDistance
from tests import tiny_networks
from tests.tiny_distillation import trainer
from tests.tiny_features import Quarters
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_rows import few
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

CAPTIONS = ["a cat", "a dog", "a boat", "a hat"]
NEAR, CONV = partial(NeighborhoodAttention, kernel_size=3), partial(DeltaConvBlock, kernel_size=3)


@dataclass(frozen=True)
class Case:
    """A family.

    Args:
        save: Writes a pipeline of it.
        size: In model space, not square.
        image: Height and width in pixels of images that it takes.
        feature: A mixer for its first site.
    """

    save: Callable[[Path], Path]
    size: tuple[int, ...]
    image: tuple[int, int]
    feature: Any = CONV

    @property
    def turned(self) -> tuple[int, ...]:
        """As many tokens, the other way round."""
        *frames, height, width = self.size
        return *frames, width, height


CASES = {
    "sd3": Case(save_sd3_pipeline, (8, 12), (16, 24)),
    "flux": Case(save_flux_pipeline, (8, 12), (16, 24)),
    "wan": Case(save_wan_pipeline, (3, 8, 12), (32, 48), LinearAttention),
}
SAVED: dict[str, str] = {}


@pytest.fixture
def teacher(name: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    if name not in SAVED:
        SAVED[name] = str(CASES[name].save(tmp_path_factory.mktemp("teacher") / name))
    return SAVED[name]


def distillation(name: str, teacher: str, *, size: tuple[int, ...] | None = None, **terms: Any) -> Any:
    torch.manual_seed(0)
    case, loss = CASES[name], LossTerms(site_on="residual", **terms)
    return AttentionDistillation(
        teacher,
        stages=[Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=loss, warmup_steps=1)],
        plan=[PlanEntry("*blocks.0.attn*", case.feature), PlanEntry("*", NEAR)],
        trained={"projections": True, "init_samples": 2},
        sampling=Sampling(2, size=size or case.size),
    )


def samples(name: str, teacher: str, folder: Path, *, mode: Any) -> TeacherSamplesDataModule:
    options: dict[str, Any] = {
        "count": 4,
        "val_count": 2,
        "sampling": {"steps": 2, "size": CASES[name].size},
        "batch_size": 2,
        "compute": {"device": "cpu"},
    }
    cache = CacheOptions(str(folder / "cache"))
    return TeacherSamplesDataModule(teacher, mode=mode, captions=CAPTIONS, cache=cache, **options)


@pytest.mark.parametrize("name", few(CASES))
def test_a_run_that_goes_on_in_either_stage_ends_where_one_in_one_go_does(
    name: str, teacher: str, tmp_path: Path
) -> None:
    """On trajectories; what is left of a run is that of its checkpoints."""

    def fitted(folder: str, ckpt_path: Path | None = None) -> Trainer:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        run = trainer(tmp_path / folder, callbacks=[saving])
        data = samples(name, teacher, tmp_path, mode="trajectory")
        run.fit(distillation(name, teacher), data, ckpt_path=ckpt_path, weights_only=True)
        assert run.global_step == 4
        return run

    whole = fitted("whole").lightning_module.state_dict()
    before = torch.load(tmp_path / "whole" / "step=1.ckpt", weights_only=True)["state_dict"]
    assert not all(torch.equal(value, whole[key]) for key, value in before.items())
    for step in (1, 3):
        resumed = fitted(f"from{step}", tmp_path / "whole" / f"step={step}.ckpt").lightning_module.state_dict()
        assert all(torch.equal(value, whole[key]) for key, value in resumed.items()), step


def captioned_images(folder: Path, size: tuple[int, int], cell: int) -> ImageDataModule:
    """Half of them wide, half of them tall."""
    lines = ["file_name,text"]
    for number, caption in enumerate(CAPTIONS):
        sides = size if number < 2 else size[::-1]
        Image.effect_noise(sides, 60.0 + number).convert("RGB").save(folder / f"{number}.png")
        lines.append(f"{number}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    records = FolderRecords(str(folder), caption_column="text")
    buckets = AspectBuckets(cell=cell, cache_dir=str(folder / "sizes"))
    return ImageDataModule(train=records, val=records, image_size=size, batch_size=2, buckets=buckets)


@pytest.mark.parametrize("name", few(CASES))
def test_images_with_captions_of_two_sizes_train_both_stages(name: str, teacher: str, tmp_path: Path) -> None:
    """Videos of one frame, of a model of video."""
    case = CASES[name]
    size = (*(1 for _ in case.size[2:]), *case.size[-2:])
    module = distillation(name, teacher, size=size, to_target=1.0, timestep_weight="min_snr")
    cell = family_of(module.denoiser).patch(module.denoiser)[-1] * module.diffusion.pixels_per_cell
    before, seen = {key: value.clone() for key, value in module.state_dict().items()}, set[Grid]()
    mixer = next(iter(module.shells.values())).mixer
    mixer.register_forward_pre_hook(lambda m, given: seen.update(each for each in given if isinstance(each, Grid)))
    run = trainer(tmp_path, enable_model_summary=True)  # with it comes the estimate of memory
    run.fit(module, captioned_images(tmp_path, case.image, cell))
    assert run.global_step == 4 and 0 < float(run.callback_metrics["val/output_relative_l2"]) < 10
    assert all(not torch.equal(before[key], module.state_dict()[key]) for key in module.trained_names())
    sides = [side // cell for side in case.image]
    assert {grid.sizes[-2:] for grid in seen} == {tuple(sides), tuple(sides[::-1])}


@pytest.mark.parametrize("name", few(CASES, "wan"))
def test_two_sizes_in_a_run_are_what_each_is_alone(name: str, teacher: str) -> None:
    case = CASES[name]

    def losses(module: Any, size: tuple[int, ...]) -> torch.Tensor:
        shape = module.diffusion.sample_shape()[:1]
        noise = torch.randn(2, *shape, *size, generator=torch.Generator().manual_seed(3))
        batch = {"sample": noise, "caption": CAPTIONS[:2], "index": torch.arange(2)}
        noised = module.noised(batch, step=0, condition_dropout=0.5)
        terms = [module.distiller.layerwise(noised), module.distiller.end_to_end(noised, module.clock.stages[1].terms)]
        return torch.stack([torch.stack(list(each.values())).sum() for each in terms])

    both = distillation(name, teacher, to_target=0.5)
    wide, tall = losses(both, case.size), losses(both, case.turned)
    torch.testing.assert_close(tall, losses(distillation(name, teacher, to_target=0.5), case.turned))
    assert not torch.allclose(wide, tall, rtol=1e-3)
    tall.sum().backward()
    trained = {key: p for key, p in both.named_parameters() if p.requires_grad}
    assert not [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.filterwarnings("ignore:Frechet distance")
@pytest.mark.parametrize("name", few(CASES, "wan"))
def test_metrics_are_those_of_what_is_drawn_and_of_the_middle_frame_of_videos(
    name: str, teacher: str, tmp_path: Path
) -> None:
    clip = str(tiny_networks.save_clip(tmp_path / "clip"))

    def metrics() -> list[Any]:
        near = KernelDistance(Quarters(), subset_size=2, subsets=3)
        return [FrechetDistance(Quarters()), near, CLIPScore(clip), TeacherError("pixels"), TeacherError("latents")]

    module = distillation(name, teacher)
    callback = GenerationMetrics(metrics(), 3, captions=CAPTIONS[:2], references="teacher", batch_size=2)
    data = samples(name, teacher, tmp_path, mode="samples")
    run = trainer(tmp_path, callbacks=[callback])
    (found,) = run.validate(module, datamodule=data, verbose=False)
    batch, ids = {"caption": ["a cat", "a dog", "a cat"]}, torch.arange(3)
    latents = [module.draw_latents(batch, ids), module.draw_teacher_latents(batch, ids)]
    images = [module.diffusion.decode_whole(each) for each in latents]
    if name == "wan":
        assert images[0].shape[2] == 5
        images = [video[:, :, 2] for video in images]
    drawn = Samples(images[0], ids, batch["caption"], images[1], *latents)
    wanted: dict[str, float] = {}
    for metric in metrics():
        reference = metric.with_reference(in_batches(images[1])) if isinstance(metric, SetDistance) else metric
        wanted |= {f"val/{key}_3": float(value) for key, value in reference.of([drawn]).items()}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert {"val/fd_quarters_3", "val/kid_quarters_3", "val/clip_score_clip_3"} < wanted.keys()
    (file,) = Path(run.log_dir or tmp_path).rglob("val_step_0000000.json")
    assert ("middle frame" in file.read_text()) == (name == "wan")
