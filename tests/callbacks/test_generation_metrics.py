"""Metrics of drawn samples inside real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from blocks import DeltaConvBlock, SoftmaxAttention
from callbacks import GenerationMetrics, TrainableEMA
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.command.cli import main
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import Stage
from sparsight.evaluation.drawn_scores import DrawnScores
from sparsight.evaluation.images import (
    CLIPScore,
    FrechetDistance,
    GenerationMetric,
    KernelDistance,
    Reference,
    Samples,
    TeacherError,
    TeacherSimilarity,
    in_batches,
)
from sparsight.evaluation.images.images import resized
from sparsight.publish.facts import read_metrics
from tests import tiny, tiny_networks
from tests.tiny_distillation import distillation_config
from tests.tiny_features import Quarters
from tests.tiny_processes import run_command


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path_factory.mktemp("teacher") / "dit"))


def distillation(teacher: str, *, steps: int = 4, mixer: Any = None, **stage: Any) -> AttentionDistillation:
    torch.manual_seed(0)
    stages = [Stage("layerwise", steps, warmup_steps=1, **stage)]
    mixer = mixer or partial(DeltaConvBlock, kernel_size=3)
    return AttentionDistillation(teacher, mixer, stages, sampling=Sampling(2), trained={"init_samples": 4})


def trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    defaults = {"logger": CSVLogger(folder), "enable_checkpointing": False, "num_sanity_val_steps": 2}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=-1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **defaults | options,
    )


def images_of(data: Any) -> Tensor:
    return torch.cat([batch["image"] for batch in data.val_dataloader()]) / 2 + 0.5


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_values_are_those_of_metrics_fed_by_hand(teacher: str, tmp_path: Path) -> None:
    module, data = distillation(teacher), tiny.image_data(tmp_path, batch_size=5, count=12)
    metrics: list[GenerationMetric] = [
        FrechetDistance(Quarters()),
        KernelDistance(Quarters(), subset_size=4, subsets=3),
        TeacherError("pixels"),
        TeacherError("latents"),
        TeacherSimilarity(Quarters()),
    ]
    run = trainer(tmp_path, [GenerationMetrics(metrics, 7, batch_size=3, compare_size=6)])
    (found,) = run.validate(module, datamodule=data, verbose=False)

    labels, ids = {"label": torch.arange(7) % 10}, torch.arange(7)  # the first seven records
    latents, teacher_latents = module.draw_latents(labels, ids), module.draw_teacher_latents(labels, ids)
    assert not torch.equal(latents, teacher_latents)
    small = [resized(module.diffusion.decode(x), 6).clamp(0, 1) for x in (latents, teacher_latents)]
    samples = Samples(small[0], ids, None, small[1], latents, teacher_latents)
    real = in_batches(resized(images_of(data), 6).clamp(0, 1))
    expected = FrechetDistance(Quarters()).with_reference(real).of([samples])
    expected |= KernelDistance(Quarters(), subset_size=4, subsets=3).with_reference(real).of([samples])
    for metric in metrics[2:]:
        expected |= metric.of([samples])
    wanted = {f"val/{name}_6px_7": pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in expected.items()}
    assert len(wanted) == 8
    assert {name: found[name] for name in wanted} == wanted
    written = read_metrics(Path(str(run.log_dir)) / "metrics" / "val_step_0000000.json")
    assert {metric.name: metric.value for metric in written} == wanted
    assert "7 samples, seed 0, 2 sampler steps, guidance 2.0" in written[0].protocol
    assert "quarters features (x / 255), against 12 images" in written[0].protocol


def test_the_teacher_as_reference(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher, mixer=SoftmaxAttention)  # equal to the teacher
    data = TeacherSamplesDataModule(
        teacher, count=2, val_count=1, sampling={"steps": 2}, batch_size=2, cache=CacheOptions(str(tmp_path / "cache"))
    )
    callback = GenerationMetrics([FrechetDistance(Quarters()), TeacherError()], 6, labels=[3, 4], references="teacher")
    (found,) = trainer(tmp_path, [callback]).validate(module, datamodule=data, verbose=False)
    assert found["val/fd_quarters_6"] == pytest.approx(0, abs=1e-7)
    assert found["val/fidelity_pixel_rmse_6"] == pytest.approx(0, abs=1e-5)
    module.diffusion.denoiser.proj_out_2.bias.data.add_(1.0)  # the teacher moves along, the reference does not
    (again,) = trainer(tmp_path, [callback]).validate(module, datamodule=data, verbose=False)
    assert again["val/fd_quarters_6"] > 1e-4
    assert again["val/fidelity_pixel_rmse_6"] == pytest.approx(0, abs=1e-5)
    kept = [DrawnScores.load(file) for file in sorted(tmp_path.rglob("drawn_val_step_0000000.json"))]
    assert [each.conditions for each in kept] == [{0: 3, 1: 4, 2: 3, 3: 4, 4: 3, 5: 4}] * len(kept)
    assert {key.metric for each in kept for key in each.estimates(resamples=0)} == {"fidelity_pixel_rmse_6"}
    (tested,) = trainer(tmp_path, [callback]).test(module, datamodule=data, verbose=False)
    assert tested["test/fd_quarters_6"] == pytest.approx(0, abs=1e-7), "another stage has its own reference"


def test_captions_of_text_models_reach_the_clip_score(tmp_path: Path) -> None:
    pipeline, clip = tiny.save_sd_pipeline(tmp_path / "sd"), str(tiny_networks.save_clip(tmp_path / "clip"))
    captions = ["a cat", "a hat"]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    data = TeacherSamplesDataModule(
        str(pipeline),
        captions=["x"],
        count=2,
        val_count=1,
        sampling={"steps": 1},
        batch_size=1,
        cache=CacheOptions(str(tmp_path / "cache")),
    )
    module = distillation(str(pipeline))
    callback = GenerationMetrics([CLIPScore(clip), TeacherError("latents")], 3, captions=str(tmp_path / "captions.txt"))
    (found,) = trainer(tmp_path, [callback]).validate(module, datamodule=data, verbose=False)
    batch, ids = {"caption": ["a cat", "a hat", "a cat"]}, torch.arange(3)
    expected = CLIPScore(clip).of([Samples(module.draw(batch, ids), ids, batch["caption"])])
    assert found["val/clip_score_clip_3"] == pytest.approx(expected["clip_score_clip"], rel=1e-4)
    assert found["val/fidelity_latent_rmse_3"] > 0


# -- beside training ---------------------------------------------------------------------------------------------


def fitted(folder: Path, teacher: str, callbacks: list[Callback], **options: Any) -> AttentionDistillation:
    module = distillation(teacher)
    run = trainer(folder, callbacks, check_val_every_n_epoch=None, val_check_interval=2, **options)
    run.fit(module, tiny.image_data(folder, count=8))
    return module


@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_training_is_not_disturbed_and_the_average_is_measured(teacher: str, tmp_path: Path) -> None:
    plain = fitted(tmp_path, teacher, [TrainableEMA(0.5)])
    callback = GenerationMetrics([FrechetDistance(Quarters()), TeacherError()], 5)
    seen: list[dict[str, Tensor]] = []

    class Watch(Callback):
        """Sees the weights of every validation, with the average in place, and what is logged of them."""

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    measured = fitted(tmp_path, teacher, [TrainableEMA(0.5), callback, Watch(), checkpoints], enable_checkpointing=True)
    assert plain.state_dict().keys() == measured.state_dict().keys()
    assert all(torch.equal(value, measured.state_dict()[name]) for name, value in plain.state_dict().items())
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("metric" in name or "extractor" in name for name in checkpoint["state_dict"])
    assert checkpoint["callbacks"][callback.state_key] == {"measured_at": 4}
    assert not any("metric" in name or "extractor" in name for name, _ in measured.named_parameters())

    last = distillation(teacher)
    last.load_state_dict(seen[-1])
    (expected,) = trainer(tmp_path, [GenerationMetrics([TeacherError()], 5)]).validate(
        last, datamodule=tiny.image_data(tmp_path), verbose=False
    )
    rows = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("val_step_0000004.json"))]
    values = {entry["name"]: entry["value"] for entry in rows[0]}
    assert values["val/fidelity_pixel_rmse_5"] == pytest.approx(expected["val/fidelity_pixel_rmse_5"], rel=1e-5)


def test_every_third_step_is_measured_in_a_resumed_run_too(teacher: str, tmp_path: Path) -> None:
    data = tiny.image_data(tmp_path, count=8)
    for steps, checkpoint in ((4, None), (6, tmp_path / "last.ckpt")):
        callbacks = [
            GenerationMetrics([TeacherError()], 2, every_n_steps=3),
            ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1),
        ]
        options = {"check_val_every_n_epoch": None, "val_check_interval": 1, "enable_checkpointing": True}
        run = trainer(tmp_path, callbacks, max_steps=steps, **options)
        run.fit(distillation(teacher, steps=6), data, ckpt_path=checkpoint, weights_only=True)
        assert run.global_step == steps
    assert sorted(p.name for p in tmp_path.rglob("val_step_*.json")) == [
        "val_step_0000003.json",
        "val_step_0000006.json",
    ]


@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_statistics_of_a_first_run_serve_data_without_images(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    reference = Reference(str(tmp_path / "reference.safetensors"), "noise", count=24)
    options: dict[str, Any] = {"num_samples": 5, "labels": [1, 2]}
    (first,) = trainer(tmp_path, [GenerationMetrics([FrechetDistance(Quarters(), reference)], **options)]).validate(
        module, datamodule=tiny.image_data(tmp_path), verbose=False
    )
    data = TeacherSamplesDataModule(
        teacher, count=2, val_count=1, sampling={"steps": 2}, batch_size=2, cache=CacheOptions(str(tmp_path / "cache"))
    )
    (second,) = trainer(tmp_path, [GenerationMetrics([FrechetDistance(Quarters(), reference)], **options)]).validate(
        module, datamodule=data, verbose=False
    )
    assert second["val/fd_quarters_5"] == pytest.approx(first["val/fd_quarters_5"], rel=1e-6)
    with pytest.raises(ValueError, match="FrechetDistance needs reference images, but the data holds only"):
        trainer(tmp_path, [GenerationMetrics([FrechetDistance(Quarters())], **options)]).validate(
            module, datamodule=data, verbose=False
        )


@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_statistics_of_images_that_were_prepared_otherwise_are_refused(teacher: str, tmp_path: Path) -> None:
    module, file = distillation(teacher), str(tmp_path / "reference.safetensors")

    def validated(*, fit: str = "crop", size: int | None = None, transform: dict[str, Any] | None = None) -> float:
        data = tiny.image_data(tmp_path, count=12)
        data.transform = replace(data.transform, fit=fit)
        distance = FrechetDistance(Quarters(), Reference(file, "noise", transform=transform))
        callback = GenerationMetrics([distance], 5, labels=[1, 2], compare_size=size)
        (found,) = trainer(tmp_path, [callback]).validate(module, datamodule=data, verbose=False)
        return found["val/fd_quarters_5"]

    with pytest.raises(ConfigurationError, match=r"transform\.fit: stretch there, crop asked for"):
        validated(fit="stretch", transform={"fit": "crop", "height": 8})
    assert not Path(file).exists(), "what is not as demanded is not written"
    first = validated(transform={"fit": "crop", "height": 8})
    assert validated() == pytest.approx(first)
    with pytest.raises(ConfigurationError, match=r"transform\.fit: crop there, pad asked for"):
        validated(fit="pad")
    assert validated(fit="pad", transform={"fit": "crop"}) == pytest.approx(first), (
        "the file is asked, the data's images are not used"
    )
    with pytest.raises(ConfigurationError, match=r"transform\.height: 8 there, 256 asked for"):
        validated(transform={"fit": "crop", "height": 256})
    for transform in (None, {"fit": "crop"}):
        with pytest.raises(ConfigurationError, match="compare_size: none there, 8 asked for"):
            validated(size=8, transform=transform)


def test_trajectories_give_each_of_their_conditions_before_any_twice(teacher: str, tmp_path: Path) -> None:
    data = TeacherSamplesDataModule(
        teacher, count=2, val_count=5, sampling={"steps": 4}, batch_size=4, cache=CacheOptions(str(tmp_path / "cache"))
    )
    drawn: list[int] = []

    class Watched(TeacherError):
        """Notes the ids that are drawn; those of a trajectory lie side by side."""

        def update(self, samples: Samples) -> None:
            drawn.extend(samples.index.tolist())
            super().update(samples)

    trainer(tmp_path, [GenerationMetrics([Watched()], 7)]).validate(distillation(teacher), data, verbose=False)
    assert [i // 4 for i in drawn] == [2, 3, 4, 5, 6, 2, 3] and len(set(drawn)) == 7


# -- several processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_two_processes_of_the_command_measure_what_one_does(tmp_path: Path) -> None:
    """Seven samples, of which neither processes nor batches get equal shares, of labels that come from the data."""
    config = distillation_config(tmp_path)
    weights = str(tiny_networks.save_timm(tmp_path / "vit.safetensors"))
    extractor = {"class_path": "TimmFeatures", "init_args": {"model": "test_vit", "weights": weights, "size": 32}}
    metrics = [
        {"class_path": "FrechetDistance", "init_args": {"extractor": extractor}},
        {"class_path": "KernelDistance", "init_args": {"extractor": extractor, "subset_size": 5, "subsets": 4}},
        {"class_path": "TeacherError"},
        {"class_path": "TeacherSimilarity", "init_args": {"extractor": extractor}},
    ]
    options = {"metrics": metrics, "num_samples": 7, "batch_size": 3}
    fragment = tmp_path / "metrics.yaml"
    callbacks = [{"class_path": "callbacks.GenerationMetrics", "init_args": options}]
    fragment.write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}))
    arguments = ["validate", "--config", str(config), "--config", str(fragment), "--trainer.default_root_dir"]
    main([*arguments, str(tmp_path / "one")])
    run_command([*arguments, str(tmp_path / "two"), "--trainer.devices=2", "--trainer.strategy=ddp"])
    values = []
    for folder in ("one", "two"):
        (file,) = (tmp_path / folder).rglob("val_step_0000000.json")
        values.append({metric.name: metric.value for metric in read_metrics(file)})
    assert set(values[0]) == {
        "val/fd_test_vit_7",
        "val/kid_test_vit_7",
        "val/kid_test_vit_std_7",
        "val/fidelity_pixel_rmse_7",
        "val/fidelity_pixel_psnr_7",
        "val/fidelity_cosine_test_vit_7",
    }
    one, two = (DrawnScores.load(next((tmp_path / name).rglob("drawn_val_*.json"))) for name in ("one", "two"))
    assert one.asked() == two.asked() and len(one.conditions) == 7
    for name, (_, of_samples) in one.values.items():
        assert two.values[name][1] == pytest.approx(of_samples, rel=1e-4, abs=1e-6)
    found = {f"val/{key.metric}": each.value for key, each in one.estimates(resamples=0).items()}
    assert found == {name: pytest.approx(values[0][name], rel=1e-6) for name in found} and len(found) == 2
    assert values[0]["val/fd_test_vit_7"] > 0 and values[0]["val/fidelity_pixel_rmse_7"] > 0
    assert values[1] == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in values[0].items()}


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": []}, "metrics is empty"),
        ({"num_samples": 0}, "num_samples is 0; allowed: 1 or more"),
        ({"compare_size": 0}, "compare_size is 0"),
        ({"labels": [1], "captions": ["a"]}, "labels or captions, and not both"),
        ({"labels": []}, "labels or captions are empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationMetrics(**{"metrics": [TeacherError()], "num_samples": 4} | options)


def test_metrics_that_cannot_be_fed_are_refused(teacher: str, tmp_path: Path) -> None:
    clip = CLIPScore(str(tiny_networks.save_clip(tmp_path / "clip")))
    with pytest.raises(ValueError, match="a metric needs captions"):
        GenerationMetrics([clip], 4, labels=[1])
    with pytest.raises(FileNotFoundError, match="no file nowhere"):
        GenerationMetrics([clip], 4, captions="nowhere.txt")
    with pytest.raises(ValueError, match="num_samples is 4, fewer than the 5 that KernelDistance needs"):
        GenerationMetrics([KernelDistance(Quarters(), subset_size=5)], 4)
    filed = FrechetDistance(Quarters(), Reference(str(tmp_path / "file.safetensors"), "x"))
    with pytest.raises(ValueError, match=r"FrechetDistance has the file .*file\.safetensors"):
        GenerationMetrics([filed], 4, references="teacher")
    data = tiny.image_data(tmp_path)
    alone = DenoiserTraining(pretrained=teacher, sampling=Sampling(2))
    with pytest.raises(ValueError, match="DenoiserTraining has no teacher"):
        trainer(tmp_path, [GenerationMetrics([TeacherError()], 4)]).validate(alone, datamodule=data, verbose=False)
    module = distillation(teacher)
    wrong = GenerationMetrics([TeacherError()], 4, captions=["a cat"])
    with pytest.raises(ConfigurationError, match=r"given captions, but DiT.* is conditioned on labels: give labels"):
        trainer(tmp_path, [wrong], num_sanity_val_steps=0).fit(module, datamodule=data)
    beyond = GenerationMetrics([TeacherError()], 4, labels=[3, 11])
    with pytest.raises(ConfigurationError, match="GenerationMetrics: labels 3 to 11 do not fit a denoiser of 10"):
        trainer(tmp_path, [beyond], num_sanity_val_steps=0).fit(module, datamodule=data)
    with pytest.raises(ValueError, match="num_samples is 25, but the data of this stage has only 24 conditions"):
        trainer(tmp_path, [GenerationMetrics([TeacherError()], 25)]).fit(module, datamodule=data)
    assert module.global_step == 0
    with pytest.raises(ValueError, match="num_samples is 9, but the data of this stage has only 8 conditions"):
        limited = trainer(tmp_path, [GenerationMetrics([TeacherError()], 9)], limit_val_batches=2)
        limited.validate(module, datamodule=data, verbose=False)


def test_equal_extractors_are_held_once() -> None:
    metrics = [FrechetDistance(Quarters()), TeacherSimilarity(Quarters()), TeacherSimilarity(Quarters(weight=2.0))]
    GenerationMetrics(metrics, 4)
    assert metrics[0].extractor is metrics[1].extractor is not metrics[2].extractor


# -- presets -----------------------------------------------------------------------------------------------------


COCO = {"dataset": "coco2014-val", "count": 40504, "transform": {"fit": "crop", "height": 256, "width": 256}}
FASHION = {"dataset": "fashion-mnist-test", "count": 10000}
DINO = {"TimmFeatures": {"model": "vit_large_patch14_dinov2.lvd142m", "size": 224, "name": "dinov2_vitl14"}}
LITE0 = {"EfficientNetLite0Features": {"size": 112}}
CLIP = {"model": "openai/clip-vit-large-patch14"}
INCEPTION = {"InceptionFeatures": {"resize": "tensorflow"}}
INCEPTION_SCORE = {"ClassifierScore": {"extractor": {"InceptionLogits": {}}, "splits": 10, "seed": 2020}}
DINO_SCORE = {"ClassifierLogits": {"model": "facebook/dinov2-large-imagenet1k-1-layer", "name": "dinov2_vitl14"}}
FDD = {"model": "facebook/dinov2-base", "size": 224, "interpolation": "bilinear", "normalize": False}
COCO_5K = COCO | {"dataset": "coco2014-val-5k", "count": 5000}
COCO_5K |= {"transform": {"fit": "crop", "height": 1024, "width": 1024}}
LAION = {"dataset": "laion-10k", "count": 10_000, "transform": {"fit": "stretch"}}
SAMPLING = {
    "clear": {"guidance_scale": 3.5},
    "coco30k": {"steps": 25, "guidance_scale": 7.5},
    "deltaconvfusion": {"steps": 20, "guidance_scale": 4.5},
    "linfusion": {"steps": 25, "guidance_scale": 7.5},
}
PRESETS: dict[str, dict[str, Any]] = {
    "clear": {
        "num_samples": 5_000,
        "captions": "coco2014_val_captions_5k.txt",
        "references": "teacher",
        "every_n_steps": 0,
        "metrics": [
            {"FrechetDistance": {"extractor": INCEPTION}},
            {"TeacherLPIPS": {"weights": "alexnet-owt-7be5be79.pth", "network": "alex"}},
            {"TeacherSimilarity": {"extractor": {"CLIPFeatures": CLIP | {"whole": False}}}},
            {"TeacherSimilarity": {"extractor": DINO}},
            {"FrechetDistance": {"extractor": INCEPTION, "reference": COCO_5K, "suffix": "real"}},
            {"CLIPScore": CLIP | {"prefix": ""}},
            INCEPTION_SCORE,
        ],
    },
    "deltaconvfusion": {
        "num_samples": 10_000,
        "references": "data",
        "every_n_steps": 0,
        "metrics": [
            INCEPTION_SCORE,
            {"ClassifierScore": {"extractor": DINO_SCORE, "splits": 10, "seed": 2020}},
            {"CLIPScore": {"model": "openai/clip-vit-base-patch16", "prefix": ""}},
            {
                "FrechetDistance": {
                    "extractor": {"TransformersFeatures": FDD | {"name": "dinov2_vitb14"}},
                    "reference": LAION,
                }
            },
        ],
    },
    "linfusion": {
        "num_samples": 30_000,
        "captions": "coco2014_val_captions_30k.txt",
        "references": "data",
        "compare_size": 256,
        "every_n_steps": 0,
        "metrics": [
            {"FrechetDistance": {"extractor": {"InceptionFeatures": {"resize": "clean"}}, "reference": COCO}},
            {
                "CLIPScore": {
                    "model": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
                    "prefix": "A photo depicts ",
                    "name": "vit_g14",
                }
            },
        ],
    },
    "coco30k": {
        "num_samples": 30_000,
        "captions": "coco2014_val_captions_30k.txt",
        "references": "data",
        "compare_size": 256,
        "every_n_steps": 0,
        "metrics": [
            {"FrechetDistance": {"extractor": {"InceptionFeatures": {"resize": "clean"}}, "reference": COCO}},
            {"FrechetDistance": {"extractor": DINO, "reference": COCO}},
            {
                "CLIPScore": {
                    "model": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
                    "prefix": "A photo depicts ",
                    "name": "vit_g14",
                }
            },
        ],
    },
    "teacher5k": {
        "num_samples": 5_000,
        "captions": "coco2014_val_captions_5k.txt",
        "references": "teacher",
        "every_n_steps": 0,
        "metrics": [
            {"FrechetDistance": {"extractor": INCEPTION}},
            {"TeacherSimilarity": {"extractor": {"CLIPFeatures": CLIP | {"whole": False}}}},
            {"TeacherSimilarity": {"extractor": DINO}},
            {"CLIPScore": CLIP | {"prefix": ""}},
            {"TeacherError": {"space": "pixels"}},
            {"TeacherError": {"space": "latents"}},
        ],
    },
    "fashion_mnist": {
        "num_samples": 2_000,
        "labels": list(range(10)),
        "references": "data",
        "every_n_steps": 0,
        "metrics": [
            {"FrechetDistance": {"extractor": LITE0, "reference": FASHION}},
            {
                "KernelDistance": {
                    "extractor": LITE0,
                    "reference": FASHION,
                    "subset_size": 1000,
                    "subsets": 100,
                    "seed": 0,
                }
            },
        ],
    },
    "teacher_fidelity": {
        "num_samples": 64,
        "references": "data",
        "every_n_steps": 1,
        "metrics": [
            {"TeacherError": {"space": "pixels"}},
            {"TeacherError": {"space": "latents"}},
            {"TeacherSimilarity": {"extractor": LITE0}},
        ],
    },
}
NO_PART_OF_A_PROTOCOL = ("file", "batch_size")


def in_short(options: Any) -> Any:
    """Options with classes by name, without those that are not set."""
    if isinstance(options, dict) and "class_path" in options:
        return {options["class_path"].rpartition(".")[2]: in_short(options["init_args"])}
    if isinstance(options, dict):
        kept = {name: value for name, value in options.items() if name not in NO_PART_OF_A_PROTOCOL}
        return {name: in_short(value) for name, value in kept.items() if value is not None}
    return [in_short(option) for option in options] if isinstance(options, list) else options


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_protocols_that_the_page_names(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for fragments in ([], ["--config", f"callbacks/{preset}"]):
        with pytest.raises(SystemExit) as stop:
            main(["test", "--config", "experiment/quickstart", *fragments, "--print_config"])
        assert stop.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    before, config = printed
    *others, added = config["trainer"]["callbacks"]
    assert others == before["trainer"]["callbacks"], "it is added to the callbacks of the experiment"
    assert in_short(added) == {"GenerationMetrics": PRESETS[preset]}
    sampling = before["model"]["init_args"]["sampling"] | SAMPLING.get(preset, {})
    assert config["model"]["init_args"] == before["model"]["init_args"] | {"sampling": sampling}
