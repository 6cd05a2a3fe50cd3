"""Latents and text embeddings of images, computed once: training steps then call neither VAE nor text encoders."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.images.buckets import trained_model
from datamodules.images.image import ImageDataModule
from datamodules.images.image_dataset import ImageDataset
from datamodules.images.latent_dataset import LatentDataset, LatentRows
from datamodules.images.size_check import check_size
from datamodules.process import ProcessDataModule
from datamodules.record_dataset import TooManyCorruptRecords
from datamodules.sampler import ReportingLoader, ResumableLoader
from sparsight.common.disk.cache_options import CacheCompute, CacheOptions
from sparsight.common.disk.cache_settings import has_former
from sparsight.common.disk.sample_cache import NOT_MADE, SampleCache, Shard, fill_progress
from sparsight.common.hashes import SHA256
from sparsight.common.moved import takes_former_options
from sparsight.diffusion.families.conditioning import ClassLabels
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.encoding import DTYPES, encode_batches, encode_unconditional
from sparsight.diffusion.model.identity import codec_identity
from sparsight.diffusion.model.loading import PipelineLoading

FORMAT = 2  # goes up when the same settings would give other numbers
_log = logging.getLogger(__name__)


@takes_former_options
class CachedLatentsDataModule(ProcessDataModule):
    """The batches of an image datamodule, with images and captions already encoded by a teacher.

    A batch holds ``"sample": float32 (B, C, H, W)`` in model space, ``"index"``, ``"label"`` or ``"caption"`` as the
    images had them, and for text-to-image teachers the embeddings ``"cond"`` and ``"uncond"``. Order, splits, flips and
    buckets are those of ``images``: training sees the same numbers as without the cache.

    Time is saved, and of memory what text encoders take of the device: the module that is trained loads them and its
    VAE all the same, because sample grids and metrics draw with them.

    The cache of a split lies in ``<cache.folder>/<key>``. The key covers the weights of VAE and text encoders, the
    tokenizers, the records (for files: name, size and time of change) and how images are prepared; a cache that was
    made otherwise is not used, and the log says in what it differs. Every process of a run, and of other runs that
    start meanwhile, makes the shards that no other is making. Finished shards are kept when a run is stopped; damaged
    ones are reported and made again.

    Args:
        teacher: Pipeline folder, shipped model or hub id whose VAE and text encoders are used; in the command
            ``model.teacher`` if not given.
        images: The images, with record sources, size, flips, buckets and batch size.
        cache: Where latents and embeddings are kept, and how. Batches have the precision that VAE and text encoders
            gave.
        compute: Where images are encoded (``auto`` is where the trainer trains), and how many together.
        loading: How the teacher is read.

    Raises:
        ValueError: No teacher or images, or an option is out of range.
    """

    wing = "diffusion"
    follows: ClassVar[Mapping[str, str]] = {"teacher": "teacher"}
    names: ClassVar[Sequence[str]] = ("teacher",)

    def __init__(
        self,
        teacher: str | None = None,
        images: ImageDataModule | None = None,
        *,
        cache: CacheOptions = CacheOptions("runs/latents", shard_size=1024),
        compute: CacheCompute = CacheCompute(batch_size=16),
        loading: PipelineLoading = PipelineLoading(),
    ) -> None:
        if images is None:
            raise ValueError("images is not given: it is the ImageDataModule whose images are encoded")
        super().__init__(num_workers=images.num_workers)
        self.teacher = self._named_model("teacher", teacher)
        self.pretrained_options = loading.source
        self.images = images
        images.encoded = True
        self.cache_dir, self.verify_days = Path(cache.folder), cache.verify_days
        self.shard_size, self.encode_batch_size = cache.shard_size, compute.batch_size
        self.dtype, self.device = cache.dtype, compute.device
        self._identity: dict[str, Any] | None = None
        self._former: dict[str, Any] | None = None  # as earlier versions wrote it
        self._model: DiffusionModel | None = None

    @property
    def classes(self) -> list[str] | None:
        """Names of the training classes, once ``setup`` has run."""
        return self.images.classes

    def identity(self) -> dict[str, Any] | None:
        """That of the images."""
        return self.images.identity()

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """Samples a batch, their height and width in a model's space."""
        return self.images.batch_shape(model)

    def check_paths(self) -> None:
        """See that the files of the images are there."""
        self.images.check_paths()

    def tried(self, folder: Path) -> ImageDataModule:
        """The images, which the module encodes then."""
        self.images.encoded = False
        return self.images

    # -- the cache -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fetch records and teacher, and see that the two fit each other; in one process a machine.

        Raises:
            FileNotFoundError: There is no such teacher.
            ValueError: The teacher has nothing to encode with, or cannot encode images of this size.
        """
        self.images.prepare_data()
        model = self._load_teacher()
        self._check(model)
        self._identity = codec_identity(model.pipeline)
        former = has_former(self.cache_dir)
        self._former = codec_identity(model.pipeline, like=SHA256) if former else self._identity

    def setup(self, stage: str | None = None) -> None:
        """Encode what the caches of this stage's splits lack, together with all other processes.

        Raises:
            RuntimeError: ``prepare_data`` has not run.
            ValueError: The cache cannot be written, the disk is too full, or the model that is about to be trained has
                another VAE or text encoder.
            NonFiniteError: Latents or embeddings are not finite.
            TooManyCorruptRecords: Too many images are unreadable.
        """
        known = self._identity, self._former
        identity, former = known if self.trainer is None else self.trainer.strategy.broadcast(known)
        if identity is None:
            raise RuntimeError("call prepare_data before setup: it loads the teacher that encodes the images")
        self.images.trainer = self.trainer
        self.images.setup(stage)
        _check_trained(trained_model(self.trainer), identity)
        for name, dataset in self.images.datasets.items():
            if isinstance(dataset, ImageDataset):
                self.images.datasets[name] = self._encoded(name, dataset, identity, former)
        self._model = None  # its memory is free for training

    def _encoded(
        self, name: str, dataset: ImageDataset, identity: Mapping[str, Any], former: Mapping[str, Any] | None
    ) -> LatentDataset:
        texts = any(part.startswith("text_encoder") for part in identity)
        rows = LatentRows(dataset, shard_size=self.shard_size, text=texts)
        others = {"split": name, **rows.settings(self.dtype)}
        cache = SampleCache(
            self.cache_dir,
            {"format": FORMAT, "teacher": identity, **others},
            former=lambda: {"format": FORMAT, "teacher": former, **others},
            verify_days=self.verify_days,
        )
        missing = cache.unusable(rows.shards)
        if missing:
            self._fill(name, cache, rows, missing)
        latents = LatentDataset(cache, rows)
        replaced = sum(int((stored != wanted).sum()) for stored, wanted in latents.stored_indices())
        if replaced > dataset.max_corrupt:
            raise TooManyCorruptRecords(
                f"{replaced} of {len(dataset)} {name} records were unreadable when they were encoded into "
                f"{cache.folder}, {dataset.max_corrupt} are allowed: repair or remove them, or raise "
                "images.allowed.corrupt_share"
            )
        if replaced:
            _log.warning("%d %s records were unreadable and others stand for them in %s", replaced, name, cache.folder)
        return latents

    def _fill(self, name: str, cache: SampleCache, rows: LatentRows, missing: Mapping[Shard, str]) -> None:
        cache.begin()
        for shard, reason in missing.items():
            if reason != NOT_MADE:
                _log.warning("%s is made again: %s", cache.folder / shard.name, reason)
        if len(missing) == len(rows.shards):
            for folder, lines in cache.others(same="split").items():
                rank_zero_info(f"latents: {folder} is not used, it was made with other settings:\n{lines}")
        model = self._load_teacher()
        model.to(self._device())
        samples = sum(shard.count for shard in missing)
        _check_space(cache, model, rows, samples, DTYPES[self.dtype])
        with fill_progress("images") as progress:
            progress.disable = self._rank > 0
            task = progress.add_task(f"encoding {name} images", total=samples)
            cache.fill(missing, partial(self._make, model, rows, lambda made: progress.advance(task, made)))

    def _make(self, model: DiffusionModel, rows: LatentRows, advance: Any, shard: Shard) -> dict[str, Tensor]:
        size = rows.size_of_unconditional(shard)
        if size is not None:
            advance(1)
            return encode_unconditional(model, size)
        loader = DataLoader(
            Subset(rows.images, rows.order[shard.first : shard.first + shard.count].tolist()),
            batch_size=self.encode_batch_size,
            num_workers=self.num_workers,
            collate_fn=rows.images.collate,
        )

        def batches() -> Any:
            for batch in loader:
                for index, reason in batch["corrupt"].items():
                    _log.warning("record %d is unreadable: %s", index, reason)
                yield batch
                advance(len(batch["index"]))

        return encode_batches(model, batches(), mirrored=rows.flip_seed is not None, dtype=DTYPES[self.dtype])

    def _load_teacher(self) -> DiffusionModel:
        if self._model is None:
            self._model = DiffusionModel.from_pretrained(self.teacher, **self.pretrained_options)
        return self._model

    def _device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _check(self, model: DiffusionModel) -> None:
        if model.vae is None and isinstance(model.conditioner, ClassLabels):
            raise ValueError(
                f"{self.teacher!r} works on pixels and has no text encoder, so there is nothing to encode: use the "
                "image datamodule itself"
            )
        if self.images.buckets is not None:
            self.images.buckets.check_fits(model)
        check_size(self.images.transform, model)

    # -- loaders ---------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> ResumableLoader:
        """The batches of ``images.train_dataloader()``, encoded."""
        return self.images.train_dataloader()

    def val_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """The batches of ``images.val_dataloader()``, encoded."""
        return self.images.val_dataloader()

    def test_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """The batches of ``images.test_dataloader()``, encoded."""
        return self.images.test_dataloader()

    def predict_dataloader(self) -> ReportingLoader | list[ReportingLoader]:
        """The batches of ``images.predict_dataloader()``, encoded."""
        return self.images.predict_dataloader()


def _check_trained(model: DiffusionModel | None, identity: Mapping[str, Any]) -> None:
    if model is None:
        return
    trained = codec_identity(model.pipeline)
    # training may have cast a part to another precision, which leaves nothing to compare
    parts = [part for part in identity if isinstance(identity[part], dict) and part in trained]
    comparable = [part for part in parts if trained[part].get("dtype") == identity[part].get("dtype")]
    other = [part for part in comparable if trained[part] != identity[part]]
    if other:
        raise ValueError(
            f"the model that is trained has another {' and '.join(other)} than the teacher that encoded the data; give "
            "the datamodule the same teacher"
        )


def _check_space(cache: SampleCache, model: DiffusionModel, rows: LatentRows, samples: int, dtype: torch.dtype) -> None:
    height, width = rows.sizes[0]
    cells = height * width // model.pixels_per_cell**2 * model.sample_shape()[0]
    text = 0
    if not isinstance(model.conditioner, ClassLabels):
        text = sum(math.prod(part.shape) for part in encode_unconditional(model, (height, width)).values())
    variants = 1 if rows.flip_seed is None else 2
    needed = samples * (variants * cells + text) * dtype.itemsize
    rank_zero_info(f"latents: {samples} images, about {needed / 1e6:.1f} MB into {cache.folder}")
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise ValueError(
            f"the latents need {needed / 1e9:.1f} GB, {cache.folder} has {free / 1e9:.1f} GB left: set cache.dtype to "
            "float16, use fewer images (limit), or choose another cache.folder"
        )
