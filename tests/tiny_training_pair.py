"""What each of two processes does in test_processes: train on cached latents and on a stream, and resume the latter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import (
    CachedLatentsDataModule,
    FolderRecords,
    ImageDataModule,
    StreamingImageDataModule,
    TarStream,
)
from lightning_modules import DenoiserTraining
from sparsight.common.disk.cache_options import CacheOptions

STEPS = 4


class Seen(Callback):
    """Notes the ids of the records that this process trains on."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.ids += batch["index"].tolist()


def latents(folder: Path, *, batch_size: int) -> CachedLatentsDataModule:
    """Eight captioned images; a cache of its own for each number of processes."""
    images = ImageDataModule(FolderRecords(str(folder / "images")), image_size=16, batch_size=batch_size)
    cache = folder / f"latents_{batch_size}"
    return CachedLatentsDataModule(
        str(folder / "teacher"), images, cache=CacheOptions(str(cache), 2), compute={"device": "cpu"}
    )


def stream(folder: Path) -> StreamingImageDataModule:
    """Sixteen images in four shards, of which each process gets two: four batches."""
    shards = TarStream(str(folder / "*.tar"), caption="txt")
    return StreamingImageDataModule(shards, batches_per_epoch=3, shuffle_buffer=3, image_size=16, batch_size=2)


def train(folder: Path, root: Path, data: LightningDataModule, *, processes: int, resume: Path | None = None) -> Seen:
    """Train cross-attentions for a few steps, with a checkpoint after each."""
    seen = Seen()
    module = DenoiserTraining(
        str(folder / "teacher"),
        trainable=["*.attn2.*"],
        # no Adam, which turns the rounding of a tiny gradient into a whole step
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        schedule={"warmup_steps": 1},
    )
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=STEPS,
        callbacks=[seen, ModelCheckpoint(root, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
    )
    trainer.fit(module, data, ckpt_path=resume)
    return seen


def main(rank: int, folder: Path) -> None:
    """One process of two."""
    train(folder, folder / "two", latents(folder, batch_size=2), processes=2)
    seen = train(folder, folder / "stream", stream(folder), processes=2)
    half = folder / "stream" / "step=2.ckpt"
    again = train(folder, folder / "resumed", stream(folder), processes=2, resume=half)
    torch.save({"whole": seen.ids, "resumed": again.ids}, folder / f"seen_{rank}.pt")
