"""Cached latents and text embeddings: the numbers of training without them, and a cache that is never out of step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from datamodules import AspectBuckets, CachedLatentsDataModule, FolderRecords, IdxRecords, ImageDataModule
from datamodules.images import latents
from datamodules.record_dataset import TooManyCorruptRecords
from lightning_modules import DenoiserTraining
from sparsight.common.disk.sample_cache import cut
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.encoding import encode_batches, text_of, text_tensor
from sparsight.diffusion.model.load import load_pipeline
from tests import tiny
from tests.tiny_files import save_images
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_processes import server, together
from tests.tiny_rows import few
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

SIDE = 16
FAMILIES = {
    "sd": tiny.save_sd_pipeline,
    "sdxl": tiny.save_sdxl_pipeline,
    "pixart": tiny.save_pixart_pipeline,
    "pixel_unet": tiny.save_pixel_unet_pipeline,  # without a VAE: only captions are encoded
}
FLIPPED = {"horizontal_flip": True}
ONE_A_SHARD = {"kept": {"shard_size": 1}}
LATER = {"sd3": save_sd3_pipeline, "flux": save_flux_pipeline, "wan": save_wan_pipeline}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: str(save(folder / name)) for name, save in FAMILIES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


def images(folder: Path, **options: Any) -> ImageDataModule:
    defaults: dict[str, Any] = {"image_size": SIDE, "batch_size": 2, "val_share": 0.2, "transform": FLIPPED}
    return ImageDataModule(FolderRecords(str(folder)), **defaults | options)


def cached(teacher: str, data: ImageDataModule, cache: Path, **options: Any) -> CachedLatentsDataModule:
    defaults: dict[str, Any] = {"compute": {"batch_size": 2, "device": "cpu"}}
    kept = {"folder": str(cache), "shard_size": 3} | options.pop("kept", {})
    return CachedLatentsDataModule(teacher, data, cache=kept, **defaults | options)


def ready(*args: Any, **options: Any) -> CachedLatentsDataModule:
    module = cached(*args, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def encoded_ids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records that are encoded from now on."""
    seen: list[int] = []

    def counting(model: Any, batches: Any, **options: Any) -> dict[str, Tensor]:
        kept = list(batches)
        seen.extend(int(index) for batch in kept for index in batch["index"])
        return encode_batches(model, kept, **options)

    monkeypatch.setattr(latents, "encode_batches", counting)
    return seen


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, Mapping):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    else:
        assert first == second


def epochs(loader: Any, count: int = 2) -> list[dict[str, Any]]:
    return [batch for _ in range(count) for batch in loader]


# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", few(FAMILIES | LATER, "sdxl"))
def test_training_sees_the_same_numbers_with_and_without_the_cache(
    teachers: dict[str, str], folder: Path, tmp_path: Path, family: str
) -> None:
    plain = images(folder)
    plain.setup("fit")
    teacher = teachers[family] if family in teachers else str(LATER[family](tmp_path / "teacher"))
    module = ready(teacher, images(folder), tmp_path)
    model = DiffusionModel.from_pretrained(teacher)
    trained = epochs(plain.train_dataloader()), epochs(module.train_dataloader())
    validated = epochs(plain.val_dataloader(), 1), epochs(module.val_dataloader(), 1)
    for name, (expected, found) in {"train": trained, "val": validated}.items():
        assert len(expected) == len(found) == {"train": 8, "val": 1}[name]
        for wanted, batch in zip(expected, found, strict=True):
            assert "image" not in batch and batch["caption"] == wanted["caption"]
            assert_same(model.prepare(batch), model.prepare(wanted))
    turned = [batch["image"] for batch in trained[0]]
    plain.horizontal_flip = False
    plain.setup("fit")
    assert not all(map(torch.equal, turned, [b["image"] for b in epochs(plain.train_dataloader())]))


@pytest.mark.slow
def test_no_caption_is_cached_as_the_pipeline_wants_it(teachers: dict[str, str], folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(teachers["sdxl"])
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path / "other")
    zeros, empty = (
        next(iter(ready(teacher, images(folder), tmp_path / "cache").train_dataloader()))["uncond"]
        for teacher in (teachers["sdxl"], str(tmp_path / "other"))
    )
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 4, "train and val of each"
    for parts in (
        lambda uncond: uncond["encoder_hidden_states"],
        lambda uncond: uncond["added_cond_kwargs"]["text_embeds"],
    ):
        assert not parts(zeros).any() and parts(empty).any()
    assert zeros["added_cond_kwargs"]["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_masks_and_added_conditions_are_kept(
    teachers: dict[str, str], folder: Path, tmp_path: Path, family: str
) -> None:
    batch = next(iter(ready(teachers[family], images(folder), tmp_path).train_dataloader()))
    if family == "sdxl":
        added = batch["cond"]["added_cond_kwargs"]
        assert added["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2 and added["text_embeds"].ndim == 2
        return
    assert batch["cond"]["added_cond_kwargs"] == {"resolution": None, "aspect_ratio": None}
    mask = batch["cond"]["encoder_attention_mask"]
    assert mask.sum() > batch["uncond"]["encoder_attention_mask"].sum() > 0


def test_training_on_the_cache_needs_neither_vae_nor_text_encoder_and_ends_with_the_same_weights(
    teachers: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    weights = []
    for data in (images(folder), cached(teachers["sd"], images(folder), tmp_path / "cache")):
        torch.manual_seed(0)
        schedule = {"warmup_steps": 0}
        module = DenoiserTraining(teachers["sd"], trainable=["*attn2*"], condition_dropout=0.5, schedule=schedule)
        if isinstance(data, CachedLatentsDataModule):
            module.diffusion.pipeline.register_modules(vae=None, text_encoder=None, tokenizer=None)
            module.diffusion.vae = None
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_steps=5, enable_checkpointing=False, **options)
        trainer.fit(module, datamodule=data)
        weights.append(module.state_dict())
    start = DenoiserTraining(pretrained=teachers["sd"], trainable=["*attn2*"]).state_dict()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
    assert max(float((start[name] - value).abs().max()) for name, value in weights[0].items()) > 1e-4


def test_half_precision_on_disk_is_close_and_small(teachers: dict[str, str], folder: Path, tmp_path: Path) -> None:
    exact = next(iter(ready(teachers["sd"], images(folder), tmp_path / "a").train_dataloader()))
    half = next(
        iter(ready(teachers["sd"], images(folder), tmp_path / "b", kept={"dtype": "float16"}).train_dataloader())
    )
    assert half["sample"].dtype == half["cond"]["encoder_hidden_states"].dtype == torch.float32
    torch.testing.assert_close(half["sample"], exact["sample"], rtol=1e-3, atol=1e-3)
    assert not torch.equal(half["sample"], exact["sample"])
    assert_same(half["uncond"], exact["uncond"])
    bytes_of = [sum(p.stat().st_size for p in (tmp_path / name).rglob("*.safetensors")) for name in "ab"]
    assert bytes_of[1] < 0.75 * bytes_of[0]


def test_a_latent_dit_keeps_its_labels(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, DiTPipeline

    DiTPipeline(tiny.dit(in_channels=4), tiny.vae(), DDPMScheduler()).save_pretrained(tmp_path / "dit")
    data = ImageDataModule(IdxRecords(*map(str, tiny.save_idx(tmp_path, 12, SIDE))), image_size=SIDE, batch_size=4)
    batch = next(iter(ready(str(tmp_path / "dit"), data, tmp_path / "cache").train_dataloader()))
    assert set(batch) == {"sample", "label", "index"} and torch.equal(batch["label"], batch["index"] % 10)
    prepared = DiffusionModel.from_pretrained(str(tmp_path / "dit")).prepare(batch)
    assert torch.equal(prepared["cond"]["class_labels"], batch["label"])


@pytest.mark.parametrize("family", few(FAMILIES, "pixart"))
def test_buckets_are_cached_size_by_size(teachers: dict[str, str], tmp_path: Path, family: str) -> None:
    folder = save_images(tmp_path / "images", 8)
    for number in range(4):
        Image.open(folder / f"{number}.png").resize((40, 16)).save(folder / f"{number}.png")
    buckets = AspectBuckets(cell=8, max_ratio=4, cache_dir=str(tmp_path / "sizes"))
    options: dict[str, Any] = {"buckets": buckets, "val_share": 0.0}
    plain, module = images(folder, **options), ready(teachers[family], images(folder, **options), tmp_path / "cache")
    plain.setup("fit")
    model = DiffusionModel.from_pretrained(teachers[family])
    shapes = set()
    for wanted, batch in zip(epochs(plain.train_dataloader()), epochs(module.train_dataloader()), strict=True):
        shapes.add(tuple(wanted["image"].shape[-2:]))
        assert_same(model.prepare(batch), model.prepare(wanted))
    assert shapes == {(16, 16), (8, 32)}


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_complete_cache_is_read_by_any_number_of_workers_and_not_written(
    teachers: dict[str, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(teachers["sd"], images(folder), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    seen = encoded_ids(monkeypatch)
    again = ready(teachers["sd"], images(folder, num_workers=2), tmp_path)
    for expected, found in zip(epochs(first.train_dataloader()), epochs(again.train_dataloader()), strict=True):
        assert_same(found, expected)
    assert seen == [] and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


OTHERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"transform": {**FLIPPED, "fit": "pad"}}, {}, "transform.fit: crop there, pad asked for"),
    ({"image_size": 8}, {}, "sizes.0.0: 16 there, 8 asked for"),
    ({"transform": {**FLIPPED, "background": 5}}, {}, "transform.background: 0 there"),
    ({"transform": {}}, {}, "mirrored: True there, False asked for"),
    ({"seed": 1}, {}, "records"),
    ({}, {"kept": {"dtype": "float16"}}, "dtype: float32 there"),
    ({}, {"kept": {"shard_size": 4}}, "shard_size: 3 there"),
]


# of the transform, of the choice of records, of the cache
@pytest.mark.parametrize(("data", "options", "named"), few(OTHERS, OTHERS[0], OTHERS[4]))
def test_a_cache_of_other_settings_is_named_and_not_used(
    teachers: dict[str, str], folder: Path, tmp_path: Path, data: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    ours = ready(teachers["sd"], images(folder, limit=5, val_share=0.0), tmp_path).images.datasets["train"].cache.folder
    theirs = cached(teachers["sd"], images(folder, **{"limit": 5, "val_share": 0.0} | data), ours, **options)
    theirs.prepare_data()
    with pytest.raises(ValueError, match=r"(?s)made with other settings and is not used.*" + named):
        theirs.setup("fit")
    theirs.cache_dir = tmp_path
    theirs.setup("fit")
    assert theirs.images.datasets["train"].cache.folder != ours


def test_changed_records_and_another_model_are_found_out(
    teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_images(tmp_path / "images")
    told: list[str] = []
    monkeypatch.setattr(latents, "rank_zero_info", told.append)
    base = (
        ready(teachers["sd"], images(folder, val_share=0.0), tmp_path / "cache").images.datasets["train"].cache.folder
    )
    Image.new("RGB", (SIDE, SIDE)).save(folder / "3.png")
    changed = (
        ready(teachers["sd"], images(folder, val_share=0.0), tmp_path / "cache").images.datasets["train"].cache.folder
    )
    assert changed != base and sum("source.fingerprint" in line for line in told) == 1
    for part, setting in (("vae", "teacher.vae.weights"), ("text_encoder", "teacher.text_encoder.weights")):
        pipeline = load_pipeline(teachers["sd"])
        with torch.no_grad():
            next(getattr(pipeline, part).parameters()).add_(1e-3)
        pipeline.save_pretrained(tmp_path / part)
        other = cached(str(tmp_path / part), images(folder, val_share=0.0), changed)
        other.prepare_data()
        with pytest.raises(ValueError, match=setting):
            other.setup("fit")
    pipeline = load_pipeline(teachers["sd"])
    pipeline.save_pretrained(tmp_path / "elsewhere")  # the same model under another name is the same
    assert (
        ready(str(tmp_path / "elsewhere"), images(folder, val_share=0.0), changed).images.datasets["train"].cache.folder
        == changed
    )


def test_a_run_that_was_killed_goes_on_and_damage_is_mended(
    teachers: dict[str, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    whole = epochs(ready(teachers["sd"], images(folder), tmp_path / "whole").train_dataloader())
    move, moves = os.replace, iter(range(100))

    def killed(source: Any, target: Any) -> None:
        if next(moves) == 2:  # the manifest and the validation shard are there
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        ready(teachers["sd"], images(folder), tmp_path / "cut")
    seen = encoded_ids(monkeypatch)
    module = ready(teachers["sd"], images(folder), tmp_path / "cut")
    assert len(seen) == 10 - 2
    for batch, expected in zip(epochs(module.train_dataloader()), whole, strict=True):
        assert_same(batch, expected)
    assert not caplog.records or "made again" not in caplog.text
    path = module.images.datasets["train"].cache.path(1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    seen.clear()
    mended = ready(teachers["sd"], images(folder), tmp_path / "cut")
    assert len(seen) == 3 and "00001.safetensors is made again: its checksum is wrong" in caplog.text
    for batch, expected in zip(epochs(mended.train_dataloader()), whole, strict=True):
        assert_same(batch, expected)


def _encode_in_a_process(rank: int, teacher: str, folder: Path, cache: Path, barrier: Any) -> None:
    made: list[int] = []

    def counting(model: Any, batches: Any, **options: Any) -> dict[str, Tensor]:
        kept = list(batches)
        made.extend(int(index) for batch in kept for index in batch["index"])
        if len(made) == len(kept):
            barrier.wait(300)  # neither has finished anything when the other begins
        return encode_batches(model, kept, **options)

    latents.encode_batches = counting
    ready(teacher, images(folder), cache, **ONE_A_SHARD)
    (cache / f"made_{rank}.json").write_text(json.dumps(made))


@pytest.mark.slow
def test_processes_that_start_together_share_the_work(teachers: dict[str, str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    together(_encode_in_a_process, teachers["sd"], folder, tmp_path / "cache", server().Barrier(2))
    made = [json.loads((tmp_path / "cache" / f"made_{number}.json").read_text()) for number in range(2)]
    assert sorted(made[0] + made[1]) == list(range(10)) and all(made)
    shared = ready(teachers["sd"], images(folder), tmp_path / "cache", **ONE_A_SHARD)
    alone = ready(teachers["sd"], images(folder), tmp_path / "alone", **ONE_A_SHARD)
    for batch, expected in zip(epochs(shared.train_dataloader()), epochs(alone.train_dataloader()), strict=True):
        assert_same(batch, expected)


def test_unreadable_images_are_replaced_and_counted_whoever_encoded_them(
    teachers: dict[str, str], tmp_path: Path, caplog: Any
) -> None:
    folder = save_images(tmp_path / "images")
    (folder / "4.png").write_bytes(b"torn")
    for _ in range(2):  # the second run meets the replacement in the cache
        caplog.clear()
        module = ready(
            teachers["sd"], images(folder, val_share=0.0, allowed={"corrupt_share": 0.1}), tmp_path / "cache"
        )
        assert "1 train records were unreadable and others stand for them" in caplog.text
        assert 4 not in {int(i) for batch in epochs(module.train_dataloader()) for i in batch["index"]}
    with pytest.raises(TooManyCorruptRecords, match="1 of 10 train records were unreadable"):
        ready(teachers["sd"], images(folder, val_share=0.0, allowed={"corrupt_share": 0.0}), tmp_path / "cache")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_said(teachers: dict[str, str], folder: Path, tmp_path: Path) -> None:
    pixel = str(tiny.save_pixel_pipeline(tmp_path / "pixel"))
    cases: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        (pixel, {}, {}, "works on pixels and has no text encoder"),
        (
            teachers["sd"],
            {"transform": {"channels": 1}},
            {},
            r"transform.channels is 1; allowed: 3, as the model's VAE",
        ),
        (teachers["sd"], {"image_size": 15}, {}, r"image_size is \(15, 15\); allowed: multiples of 2"),
        (teachers["sd"], {"image_size": 15, "buckets": AspectBuckets(cell=5)}, {}, "buckets.cell is 5"),
        (teachers["sd"], {}, {"kept": {"dtype": "int8"}}, "dtype is 'int8'; allowed: float32, float16, bfloat16"),
        (teachers["sd"], {}, {"kept": {"shard_size": 0}}, "shard_size is 0"),
    ]
    for teacher, data, options, message in cases:
        with pytest.raises(ValueError, match=message):
            cached(teacher, images(folder, **data), tmp_path / "cache", **options).prepare_data()
    with pytest.raises(RuntimeError, match="call prepare_data before setup"):
        cached(teachers["sd"], images(folder), tmp_path / "cache").setup("fit")


def test_data_encoded_by_another_model_than_the_trained_one_is_refused(
    teachers: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(teachers["sd"])
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(1e-3)
    pipeline.save_pretrained(tmp_path / "other")
    module = DenoiserTraining(pretrained=str(tmp_path / "other"), trainable=["*attn2*"])
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_checkpointing=False, **options)
    with pytest.raises(ValueError, match="the model that is trained has another vae than the teacher"):
        trainer.fit(module, datamodule=cached(teachers["sd"], images(folder), tmp_path / "cache"))


def test_latents_that_are_not_finite_stop_the_run(teachers: dict[str, str], folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(teachers["sd"])
    with torch.no_grad():
        pipeline.vae.quant_conv.weight.fill_(3e38)  # weights that are NaN are refused at once
    pipeline.save_pretrained(tmp_path / "broken")
    with pytest.raises(FloatingPointError, match="sample holds values that are NaN"):
        ready(str(tmp_path / "broken"), images(folder), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_texts_come_back_and_groups_share_no_shard() -> None:
    texts = ["", "a cat", "\u00e4\u732b"]
    assert [text_of(row) for row in text_tensor(texts)] == texts
    assert [(s.first, s.count) for s in cut(5, 1, 4, size=2)] == [(0, 2), (2, 2), (4, 1), (5, 1), (6, 2), (8, 2)]
