"""Batches of images in [-1, 1] with labels or captions, from any record source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datamodules.allowed import AllowedImages
from datamodules.base import RecordsDataModule
from datamodules.images.buckets import AspectBuckets, trained_model
from datamodules.images.class_check import check_alike, check_batch, check_classes, number_of_classes
from datamodules.images.image_dataset import ImageDataset, ImageTransform
from datamodules.images.size_check import UNSCALED, check_scales, check_size
from datamodules.images.transform_options import TransformOptions
from datamodules.sources.decoding import MAX_PIXELS
from datamodules.sources.records import RecordSource
from sparsight.common.errors import require
from sparsight.common.moved import takes_former_options
from sparsight.diffusion.model.diffusion_model import DiffusionModel


@takes_former_options
class ImageDataModule(RecordsDataModule):
    """Batches of images with class labels or captions from any record source.

    A batch is ``{"image": float32 (B, C, H, W) in [-1, 1], "index": int64 (B,) positions in the source}``, with
    ``"label": int64 (B,)`` where the source has labels and ``"caption": list[str]`` where it has captions.

    The training order depends on (seed, epoch), flips on (seed, epoch, index) and the split on the seed alone; a
    checkpoint written in the middle of an epoch goes on with the next batch of that epoch.

    Args:
        train: Where training records come from; ``None`` if there is no training.
        val: Where validation records come from; ``None`` takes ``val_share`` of ``train``.
        test: Where test records come from.
        val_share: Share of ``train``, 0 to 1, held out for validation when ``val`` is not given.
        image_size: Side, or (height, width), of the images in pixels.
        transform: What else is done to them.
        buckets: Bring each training image to the size of this area that is nearest to its own proportions; every batch
            then has one size. Validation and test images have ``image_size``.
        scales: Multiples of ``image_size``: each training image is brought to one of these sizes, drawn once with the
            seed, and every batch has one size. With ``fit: pad`` an image that is smaller is only padded further.
        batch_size: Records a batch and process; the global batch is this times the number of processes.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Seed of order, flips, split and ``limit``.
        limit: Use at most this many records of each of train, val and test, drawn with the seed.
        allowed: How much of the records may be unusable, and which classes they may have.

    Attributes:
        datasets: Data set of each split, once ``setup`` has run.
        corrupt: Unreadable records that this process has met: for each split, position in the source and reason.
        encoded: Whether the trained model sees these images through another one, which decides about their size.
    """

    wing = "diffusion"

    def __init__(
        self,
        train: RecordSource | None,
        val: RecordSource | None = None,
        test: RecordSource | None = None,
        val_share: float = 0.0,
        image_size: int | tuple[int, int] = 32,
        transform: TransformOptions = TransformOptions(),
        buckets: AspectBuckets | None = None,
        scales: Sequence[float] = UNSCALED,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        allowed: AllowedImages = AllowedImages(),
    ) -> None:
        super().__init__(
            train=train,
            val=val,
            test=test,
            val_share=val_share,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            limit=limit,
            allowed=allowed,
        )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        fits = height >= 1 and width >= 1 and height * width <= MAX_PIXELS
        require(fits, "image_size", image_size, f"1 or more, and up to {MAX_PIXELS} pixels together")
        self.transform = ImageTransform(height, width, transform.channels, transform.fit, transform.background)
        self.horizontal_flip = transform.horizontal_flip
        self.buckets = buckets
        self.scales = check_scales(scales, height, width, bucketed=buckets is not None)
        self.other_classes = allowed.other_classes
        self._model_classes: int | None = None
        self.alike = "one size" if buckets is not None or self.scales != UNSCALED else ""
        self.encoded = False

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """Samples a batch, their sides in a model's space, the largest of its scales; known before there is any data.

        To a model of video they have one frame.

        Raises:
            ValueError: The model does not take such images.
        """
        if not self.encoded:
            self._check_sizes(model)
        largest = self._transforms()[-1]
        cell = model.pixels_per_cell
        frames = (1,) * (len(model.sample_shape()) - 3)
        return self.batch_size, *frames, largest.height // cell, largest.width // cell

    def _check_sources(self, opened: Mapping[str, RecordSource]) -> None:
        named = {name: source.classes for name, source in opened.items() if source.classes is not None}
        if any(classes != next(iter(named.values())) for classes in named.values()):
            raise ValueError(f"the sources disagree about the classes: {named}; give all of them the same `classes`")
        for source in opened.values():
            check_alike(source.parts)
        model = trained_model(self.trainer)
        self._model_classes = number_of_classes(model)
        if model is not None and not self.encoded:
            self._check_sizes(model)
        if model is not None and not self.other_classes:
            for name, source in opened.items():
                check_classes(source, model, split=name)
        if self.buckets is not None and "train" in opened and model is not None:
            self.buckets.check_fits(model)

    def _transforms(self) -> list[ImageTransform]:
        """Of every scale, the smallest first."""
        base = self.transform
        sizes = [(round(scale * base.height), round(scale * base.width)) for scale in sorted(self.scales)]
        return [replace(base, height=height, width=width) for height, width in sizes]

    def _check_sizes(self, model: DiffusionModel) -> None:
        for transform in (self.transform, *self._transforms()):
            check_size(transform, model)

    def _receive(self, name: str, batch: dict[str, Any], last: bool) -> dict[str, Any]:
        source = self.datasets[name].source
        check_batch(batch, classes=self._model_classes, where=source.where)
        return super()._receive(name, batch, last)

    def _make_dataset(self, name: str, source: RecordSource, indices: np.ndarray, *, max_corrupt: int) -> ImageDataset:
        transforms, groups = [self.transform], np.zeros(len(indices), dtype=np.int64)
        if self.scales != UNSCALED and name == "train":
            transforms = self._transforms()
            drawn = np.random.default_rng([self.seed, len(source)]).integers(len(transforms), size=len(source))
            groups = drawn[indices]
        elif self.buckets is not None and name == "train":
            sizes = self.buckets.sizes(self.transform.height, self.transform.width)
            groups = self.buckets.assign(self.buckets.measure(source)[indices], sizes)
            transforms = [replace(self.transform, height=height, width=width) for height, width in sizes]
        return ImageDataset(
            source,
            indices=indices,
            transforms=transforms,
            groups=groups,
            flip_seed=self.seed if self.horizontal_flip and name == "train" else None,
            max_corrupt=max_corrupt,
        )
