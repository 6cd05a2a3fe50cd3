"""Aspect buckets: sizes of one area, batches of one size, the same for any number of processes, and resumable."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import AspectBuckets, FolderRecords, IdxRecords, ImageDataModule
from datamodules.sampler import GroupSampler, ResumableLoader
from datamodules.sources.decoding import image_size
from datamodules.sources.records import CorruptRecord
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from tests import tiny
from tests.tiny_records import Numbers

SHAPES = [(16, 16)] * 9 + [(10, 40)] * 7 + [(36, 12)] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three proportions, and one that cannot be read."""
    root = tmp_path_factory.mktemp("shapes")
    for number, (height, width) in enumerate(SHAPES):
        Image.new("L", (width, height), number).save(root / f"{number:02d}.png")
    (root / "99.png").write_bytes(b"torn")
    return root


def make(folder: Path, sizes: Path, **options: Any) -> ImageDataModule:
    buckets = AspectBuckets(cell=8, max_ratio=4, cache_dir=str(sizes))
    defaults: dict[str, Any] = {
        "image_size": 16,
        "transform": {"channels": 1},
        "batch_size": 2,
        "allowed": {"corrupt_share": 0.1},
    }
    module = ImageDataModule(FolderRecords(str(folder)), buckets=buckets, **defaults | options)
    return module


def ready(folder: Path, sizes: Path, **options: Any) -> ImageDataModule:
    module = make(folder, sizes, **options)
    module.setup("fit")
    return module


def test_sizes_have_one_area_and_their_images_the_nearest_proportions() -> None:
    buckets = AspectBuckets(cell=64, max_ratio=2)
    sizes = buckets.sizes(512, 512)
    assert (512, 512) in sizes and {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % 64 == width % 64 == 0 and 0.85 * 512**2 < height * width <= 512**2
        assert max(height, width) <= 2 * min(height, width)
    assert sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    measured = np.array([[100, 100], [3000, 1000], [90, 100], [0, 0], [480, 640]])
    chosen = [sizes[number] for number in buckets.assign(measured, sizes)]
    assert chosen == [(512, 512), (640, 384), (512, 512), (512, 512), (448, 576)]
    assert buckets.sizes(512, 1536) and (512, 1536) in buckets.sizes(512, 1536)  # what is asked for is always there


def test_batches_come_in_several_scales_and_validation_in_one(tmp_path: Path) -> None:
    records = IdxRecords(*map(str, tiny.save_idx(tmp_path)))
    how: dict[str, Any] = {"scales": [1, 1.5, 2], "image_size": 8, "batch_size": 2, "transform": {"channels": 1}}
    images, again = (ImageDataModule(records, val=records, **how) for _ in range(2))
    images.setup("fit")
    seen: dict[int, set[int]] = {}
    for batch in images.train_dataloader():
        assert batch["image"].shape[-1] == batch["image"].shape[-2]
        seen.setdefault(batch["image"].shape[-1], set()).update(batch["index"].tolist())
    assert set(seen) == {8, 12, 16} and sum(map(len, seen.values())) == len(set.union(*seen.values()))
    again.setup("fit")
    assert again.datasets["train"].groups.tolist() == images.datasets["train"].groups.tolist()
    assert {batch["image"].shape[-1] for batch in images.val_dataloader()} == {8}
    model = DiffusionModel.from_pretrained(str(tiny.save_pixel_pipeline(tmp_path / "teacher")))
    assert images.batch_shape(model) == (2, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, r"scales is \[\]; allowed: one or more"),
        ({"scales": [1, 1]}, "each of them once"),
        ({"scales": [1, 1.3]}, r"scales is .*whole pixels of image_size \(16, 16\)"),
        ({"scales": [1, -1]}, "whole pixels"),
        ({"scales": [1, 2], "buckets": AspectBuckets(cell=8)}, r"scales is .*\[1\] beside buckets"),
    ],
)
def test_scales_that_make_no_size_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageDataModule(FolderRecords(str(folder)), image_size=16, **options)


def test_batches_have_one_size_and_pictures_keep_their_proportions(folder: Path, tmp_path: Path) -> None:
    module = ready(folder, tmp_path)
    shapes: dict[tuple[int, ...], set[int]] = {}
    for batch in module.train_dataloader():
        shapes.setdefault(tuple(batch["image"].shape[-2:]), set()).update(batch["index"].tolist())
    assert set(shapes) == {(16, 16), (8, 32), (32, 8)}
    assert shapes[(8, 32)] <= set(range(9, 16)) and shapes[(32, 8)] == {16, 17}
    assert module.corrupt["train"] == {} or set(module.corrupt["train"]) == {18}
    eval_shapes = {
        tuple(b["image"].shape[-2:]) for b in ready(folder, tmp_path, val=FolderRecords(str(folder))).val_dataloader()
    }
    assert eval_shapes == {(16, 16)}


def test_two_processes_see_the_global_batches_of_one_and_resume_anywhere(folder: Path, tmp_path: Path) -> None:
    alone = ready(folder, tmp_path, batch_size=4)
    expected = [set(batch["index"].tolist()) for batch in alone.train_dataloader()]
    found = []
    for rank in range(2):
        module = make(folder, tmp_path)
        module.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, limit_train_batches=None, lightning_module=None
        )  # type: ignore[assignment]
        module.setup("fit")
        found.append([set(batch["index"].tolist()) for batch in module.train_dataloader()])
        loader = module.train_dataloader()
        for done in range(len(loader) + 1):
            again = module.train_dataloader()
            again.load_state_dict({"epoch": 0, "samples": done * 4})
            assert [set(batch["index"].tolist()) for batch in again] == found[rank][done:]
    assert [a | b for a, b in zip(*found, strict=True)] == expected and len(expected) == 3


def test_every_group_is_met_and_each_epoch_leaves_out_others() -> None:
    groups = [0] * 10 + [7] * 5 + [3] * 1
    seen = []
    for epoch in range(30):
        sampler = GroupSampler(groups, global_batch=4, seed=1)
        loader = ResumableLoader(Numbers(16), sampler=sampler, batch_size=4, collate_fn=list)
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert sorted(sorted({groups[index] for index in batch}) for batch in batches) == [[0], [0], [7]]
        seen.append(frozenset(index for batch in batches for index in batch))
    assert len(set(seen)) > 10 and set.union(*map(set, seen)) == set(range(15))


def test_headers_are_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    size = FolderRecords.size

    def counting(source: FolderRecords, index: int) -> tuple[int, int]:
        read.append(index)
        return size(source, index)

    monkeypatch.setattr(FolderRecords, "size", counting)
    first = ready(folder, tmp_path)
    assert read == list(range(len(SHAPES) + 1))
    second = ready(folder, tmp_path)
    assert len(read) == len(SHAPES) + 1
    assert (first.datasets["train"].groups == second.datasets["train"].groups).all()
    next(tmp_path.glob("*.npy")).write_bytes(b"torn")
    ready(folder, tmp_path)
    assert len(read) == 2 * (len(SHAPES) + 1)
    copy = pickle.loads(pickle.dumps(first.datasets["train"]))
    assert torch.equal(copy[9]["image"], first.datasets["train"][9]["image"])


def test_sizes_follow_exif_and_do_not_decode(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.effect_noise((30, 20), 50).save(buffer, "jpeg", exif=exif)
    assert image_size(buffer.getvalue()) == (30, 20)  # 20 high as stored, turned on its side
    assert image_size(buffer.getvalue()[:400]) == (30, 20)  # the pixels are missing
    plain = io.BytesIO()
    Image.new("L", (30, 20)).save(plain, "png")
    assert image_size(plain.getvalue()) == (20, 30)
    with pytest.raises(CorruptRecord):
        image_size(b"torn")


def test_what_cannot_work_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="cell is 0"):
        AspectBuckets(cell=0)
    with pytest.raises(ValueError, match=r"image_size \(20, 20\) must be multiples of buckets.cell=8"):
        ready(folder, tmp_path, image_size=20)
    with pytest.raises(ValueError, match="19 training records do not fill one batch of 11 of one size"):
        ready(folder, tmp_path, batch_size=11).train_dataloader()
    ready(folder, tmp_path, batch_size=4).train_dataloader()
    assert "2 records in 1 groups of one size are never trained on" in caplog.text


def test_a_dit_and_a_unet_of_larger_cells_are_refused(folder: Path, tmp_path: Path) -> None:
    cases = {
        "diffusers' DiT is for squares": tiny.save_pixel_pipeline(tmp_path / "dit"),
        "buckets.cell is 8; allowed for this denoiser: multiples of 16": tiny.save_sd_pipeline(
            tmp_path / "sd",
            block_out_channels=(8, 16, 32, 32),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
        ),
    }
    for message, teacher in cases.items():
        trained = SimpleNamespace(diffusion=DiffusionModel.from_pretrained(str(teacher)))
        module = make(folder, tmp_path, transform={"channels": 1 if trained.diffusion.vae is None else 3})
        module.trainer = SimpleNamespace(lightning_module=trained)  # type: ignore[assignment]
        with pytest.raises(ValueError, match=message):
            module.setup("fit")
