"""ImageDataModule: batches, splits, corrupt records and exact resuming."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image

from datamodules import CorruptRecord, FolderRecords, ImageDataModule, RecordSource
from datamodules.images.image_dataset import ImageTransform, flips
from datamodules.record_dataset import TooManyCorruptRecords
from datamodules.sampler import ReportingLoader
from tests.tiny_records import MemoryRecords, SaveEverywhere, indices
from tests.tiny_rows import few

FLIPPED = {"channels": 1, "horizontal_flip": True}


def make(total: int = 22, *, stage: str = "fit", source: RecordSource | None = None, **options: Any) -> ImageDataModule:
    """Datamodule over records in memory, set up."""
    options = {"image_size": 2, "transform": {"channels": 1}, "batch_size": 4, **options}
    datamodule = ImageDataModule(MemoryRecords(total) if source is None else source, **options)
    datamodule.setup(stage)
    return datamodule


# ------------------------------------------------------------------------------------------------------------ batches
def test_batch_holds_what_the_contract_says() -> None:
    batch = next(iter(make(transform={"channels": 3}).train_dataloader()))
    assert set(batch) == {"image", "label", "caption", "index"}
    assert batch["image"].shape == (4, 3, 2, 2) and batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    for image, label, caption, index in zip(*(batch[k] for k in ("image", "label", "caption", "index")), strict=True):
        assert label == index % 3 and caption == f"picture {index}"
        torch.testing.assert_close(image[:, :, 0], torch.full((3, 2), index / 127.5 - 1))
        assert (image[:, :, 1] == -1).all()


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        ("pad", (4, 4), [[9, 9, 9, 9], [9, 0, 200, 9], [9, 0, 200, 9], [9, 9, 9, 9]]),
        ("pad", (2, 4), [[9, 0, 200, 9], [9, 0, 200, 9]]),
        ("crop", (1, 2), [[0, 200]]),
        ("stretch", (1, 2), [[0, 200]]),
    ],
)
def test_fit(fit: Any, size: tuple[int, int], expected: list[list[int]]) -> None:
    image = Image.fromarray(np.array([[0, 200], [0, 200]], dtype=np.uint8))
    transform = ImageTransform(*size, channels=1, fit=fit, background=9)
    assert ((transform(image)[0] + 1) * 127.5).round().int().tolist() == expected


def test_crop_keeps_proportions_and_the_middle_where_stretch_does_not() -> None:
    pixels = np.zeros((10, 30), dtype=np.uint8)
    pixels[:, 10:20] = 255
    image = Image.fromarray(pixels)
    cropped, stretched = (ImageTransform(10, 10, 1, fit, 0)(image) for fit in ("crop", "stretch"))
    assert (cropped == 1).all() and stretched.mean() < 0
    padded = ImageTransform(15, 15, 1, "pad", 0)(image)
    assert padded.shape == (1, 15, 15) and (padded[:, :5] == -1).all() and padded[0, 7, 7] == 1


def test_transparency_shows_the_background_and_deep_pixels_are_refused() -> None:
    clear = Image.new("RGBA", (2, 2), (50, 60, 70, 0))
    assert (ImageTransform(2, 2, 3, "crop", 255)(clear) == 1).all()
    with pytest.raises(CorruptRecord, match="I;16 has more than 8 bits"):
        ImageTransform(2, 2, 1, "crop", 0)(Image.new("I;16", (2, 2)))


def test_flips_depend_on_epoch_and_record_only() -> None:
    def flipped(epoch: int, **options: Any) -> dict[int, bool]:
        loader = make(40, transform=FLIPPED, **options).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return {
            int(index): bool(image[0, 0, 0] == -1)
            for batch in loader
            for index, image in zip(batch["index"], batch["image"], strict=True)
            if index > 0
        }

    first = flipped(1)
    assert first == {index: flips(0, 1, index) for index in first} == flipped(1, num_workers=1)
    assert first != flipped(2) and 5 < sum(first.values()) < 35
    assert not any(make(40).datasets["train"][i]["image"][0, 0, 0] == -1 for i in range(1, 40))


def test_second_loader_leaves_the_epoch_of_the_first() -> None:
    datamodule = make(transform=FLIPPED)
    running = datamodule.train_dataloader()
    running.load_state_dict({"epoch": 5, "samples": 0})
    next(iter(running)), next(iter(datamodule.train_dataloader()))
    assert running.dataset.epoch == 5  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------- splits
def test_split_is_disjoint_complete_and_drawn_by_the_seed() -> None:
    def split(seed: int) -> tuple[list[int], list[int]]:
        datamodule = make(40, val_share=0.25, seed=seed, batch_size=1)
        return sorted(indices(datamodule.train_dataloader())), indices(datamodule.val_dataloader())

    train, val = split(0)
    assert len(val) == 10 and sorted(train + val) == list(range(40))
    assert split(0) == (train, val) != split(1)


def test_limit_and_stages() -> None:
    source = MemoryRecords(9)
    datamodule = make(30, val=source, test=source, limit=5, stage="test")
    assert set(datamodule.datasets) == {"test"} and len(indices(datamodule.test_dataloader())) == 5
    datamodule.setup("fit")
    assert {name: len(dataset) for name, dataset in datamodule.datasets.items()} == {"train": 5, "val": 5, "test": 5}
    assert make().val_dataloader() == []
    loader = datamodule.val_dataloader()
    assert isinstance(loader, ReportingLoader)
    assert torch.equal(next(iter(loader))["index"], next(iter(loader))["index"])


def test_what_cannot_work_is_said_before_it_starts(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"transform": {"channels": 2}}, "channels is 2; allowed: 1 or 3"),
        ({"transform": {"fit": "zoom"}}, "fit is zoom; allowed: crop, pad, stretch"),
        ({"image_size": 0}, "image_size"),
        ({"transform": {"background": 256}}, "background is 256"),
        ({"val_share": 1.0}, "val_share is 1.0"),
        ({"val_share": 0.01}, "holds out 0 of 22 records"),
        ({"allowed": {"corrupt_share": 2.0}}, "corrupt_share is 2.0"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"val_share": 0.5, "val": MemoryRecords(3)}, "leave one of them out"),
        ({"stage": "test"}, "no records to test on; set `test`"),
        ({"stage": "validate"}, "no records to validate on; set `val` or val_share"),
        ({"source": MemoryRecords(0)}, r"data\.train: MemoryRecords has no records"),
        ({"source": MemoryRecords(9, classes=["a"]), "val": MemoryRecords(9, classes=["b"])}, "disagree"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="22 training records do not fill one batch of 23"):
        make(batch_size=23).train_dataloader()
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        make(source=FolderRecords(tmp_path / "nowhere"))


# ---------------------------------------------------------------------------------------------------- corrupt records
@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_record_is_replaced_counted_and_reported(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    source = MemoryRecords(20, corrupt=(3, 19))
    datamodule = make(source=source, allowed={"corrupt_share": 0.1}, num_workers=workers)
    with caplog.at_level("WARNING"):
        seen = sorted(indices(datamodule.train_dataloader()))
        again = sorted(indices(datamodule.train_dataloader()))
    assert seen == again == sorted([*range(3), 4, *range(4, 19), 0])
    assert datamodule.corrupt["train"] == {n: f"record {n} of MemoryRecords: torn" for n in (3, 19)}
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("skipped in train: record 3 of MemoryRecords: torn") == 1
    assert lines.count("2 of 20 train records are unreadable and were skipped") == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("corrupt", [(3, 9, 15), tuple(range(20))])
def test_too_many_corrupt_records_end_the_run(workers: int, corrupt: tuple[int, ...]) -> None:
    datamodule = make(source=MemoryRecords(20, corrupt=corrupt), allowed={"corrupt_share": 0.1}, num_workers=workers)
    with pytest.raises(TooManyCorruptRecords, match=f"{len(corrupt)} of 20 records are unreadable, 2 are allowed"):
        indices(datamodule.train_dataloader())


# ------------------------------------------------------------------------------------------------------------- resume
class Watcher(LightningModule):
    """Notes the records that it is shown, and whether they were mirrored."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.seen: list[tuple[int, list[int], list[float]]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.trainer.global_step, batch["index"].tolist(), batch["image"].flatten().tolist()))
        return self.layer(batch["image"].flatten(1)).mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        return

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(*, checkpoint: Path | None = None, workers: int = 0, save: Path | None = None, **options: Any) -> list[Any]:
    """Train on 22 records in batches of 4 (5 an epoch), and return what was seen."""
    datamodule: LightningDataModule = make(
        val=MemoryRecords(4) if options.pop("validate") else None, transform=FLIPPED, num_workers=workers
    )
    watcher = Watcher()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[] if save is None else [SaveEverywhere(save)],
        **options,
    )
    trainer.fit(watcher, datamodule, ckpt_path=checkpoint)
    return watcher.seen


RUNS: list[dict[str, Any]] = [
    {"max_steps": 12, "validate": False},
    {"max_epochs": 3, "validate": True},
    {"max_steps": 6, "accumulate_grad_batches": 2, "validate": True},
    {"max_epochs": 3, "accumulate_grad_batches": 2, "limit_train_batches": 3, "validate": False},
    {"max_steps": 12, "val_check_interval": 3, "check_val_every_n_epoch": None, "validate": True},
]


@pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|LeafSpec|across ranks is zero).*")
@pytest.mark.parametrize("options", few(RUNS, RUNS[4]))
def test_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit(save=tmp_path, **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > len(whole) > 8
    for checkpoint in checkpoints:
        assert fit(checkpoint=checkpoint, **options) == whole[int(checkpoint.name[:3]) :], checkpoint.name
    # With a worker the sampler runs ahead of training; one stop in the middle of an epoch and one at its end.
    for checkpoint in (tmp_path / "007-batch.ckpt", tmp_path / "010-batch.ckpt"):
        if checkpoint.exists():
            assert fit(checkpoint=checkpoint, workers=1, **options) == whole[int(checkpoint.name[:3]) :]


# ------------------------------------------------------------------------------------------------------- plug and play
def test_yaml_builds_the_datamodule_and_it_can_be_sent_to_workers(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.write_bytes(struct.pack(">4I", 0x0803, 6, 28, 28) + bytes([255]) * (6 * 28 * 28))
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = f"""
data:
  class_path: datamodules.ImageDataModule
  init_args:
    train: {{class_path: datamodules.IdxRecords, init_args: {{images: {images}}}}}
    transform: {{channels: 1, fit: pad}}
    batch_size: 3
"""
    datamodule = parser.instantiate(parser.parse_string(text)).data
    datamodule.prepare_data()
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert set(batch) == {"image", "index"} and batch["image"].shape == (3, 1, 32, 32)
    assert (batch["image"][:, :, 2:30, 2:30] == 1).all() and (batch["image"][:, :, :2] == -1).all()
    copy = pickle.loads(pickle.dumps(datamodule.datasets["train"]))
    assert torch.equal(copy[0]["image"], datamodule.datasets["train"][0]["image"])
