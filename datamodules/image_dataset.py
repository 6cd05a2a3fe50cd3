"""Records as tensors: one size, one channel count, mirrored or not, unreadable ones replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.records import CorruptRecord, Record, RecordSource

Fit = Literal["crop", "pad", "stretch"]
_DEEP_MODES = ("I", "F")


class TooManyCorruptRecords(RuntimeError):
    """More records are unreadable than ``max_corrupt_share`` allows."""


@dataclass(frozen=True)
class ImageTransform:
    """Brings any picture to one size and channel count.

    Args:
        height: Height H of the result in pixels.
        width: Width W of the result in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: ``crop`` scales until the image covers H x W and cuts the middle out; ``pad`` scales down, never up, until
            it fits in and puts it in the middle of the background; ``stretch`` ignores its proportions.
        background: Value, 0 to 255, of padding and behind transparent pixels.
    """

    height: int
    width: int
    channels: int
    fit: Fit
    background: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a float32 tensor (C, H, W) in [-1, 1].

        Raises:
            CorruptRecord: If the image has more than 8 bits a channel, which would be clipped silently.
        """
        if image.mode.split(";")[0] in _DEEP_MODES:
            raise CorruptRecord(f"image mode {image.mode} has more than 8 bits a channel; convert it to 8 bits")
        image = self._resized(self._flattened(image))
        pixels_HWC = np.asarray(image, dtype=np.float32).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 127.5 - 1.0

    def _flattened(self, image: Image.Image) -> Image.Image:
        mode = "L" if self.channels == 1 else "RGB"
        if not image.has_transparency_data:
            return image if image.mode == mode else image.convert(mode)
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (self.background,) * 3 + (255,))
        return Image.alpha_composite(canvas, rgba).convert(mode)

    def _resized(self, image: Image.Image) -> Image.Image:
        size = (self.width, self.height)
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, Image.Resampling.BICUBIC)
        ratios = (self.width / image.width, self.height / image.height)
        scale = max(ratios) if self.fit == "crop" else min(1.0, *ratios)
        scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if scaled != image.size:
            image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (self.width - image.width) // 2, (self.height - image.height) // 2
        canvas = Image.new(image.mode, size, (self.background,) * self.channels)
        canvas.paste(image, (left, top))
        return canvas


def flips(seed: int, epoch: int, index: int) -> bool:
    """Fair coin that depends on nothing but its arguments."""
    return bool(hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=1).digest()[0] & 1)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into a batch; keys that no sample has are left out."""
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "corrupt": {index: reason for sample in samples for index, reason in sample["corrupt"].items()},
    }
    if samples[0]["label"] is not None:
        batch["label"] = torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)
    if samples[0]["caption"] is not None:
        batch["caption"] = [sample["caption"] for sample in samples]
    return batch


class ImageDataset(Dataset):
    """Chosen records of a source as tensors; an unreadable record is replaced by the next readable one.

    Args:
        source: Opened source.
        indices: Records that belong to the data set, as positions in the source.
        transforms: Make tensors, one transform for every size that images are brought to.
        groups: Number of the transform of every chosen record.
        flip_seed: Seed of random horizontal flips, or ``None`` for none.
        max_corrupt: Number of unreadable records that is tolerated.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        source: RecordSource,
        *,
        indices: np.ndarray,
        transforms: Sequence[ImageTransform],
        groups: np.ndarray,
        flip_seed: int | None,
        max_corrupt: int,
    ) -> None:
        self.source = source
        self.indices = indices
        self.transforms = transforms
        self.groups = groups
        self.flip_seed = flip_seed
        self.max_corrupt = max_corrupt
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch that flips depend on; called before workers start."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of chosen records."""
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Sample at a position, with the unreadable records that were passed over on the way to it.

        Raises:
            TooManyCorruptRecords: If more records in a row are unreadable than are tolerated.
        """
        corrupt: dict[int, str] = {}
        for step in range(len(self.indices)):
            index = int(self.indices[(position + step) % len(self.indices)])
            try:
                return {**self._sample(index, group=self.groups[position]), "corrupt": corrupt}
            except CorruptRecord as error:
                corrupt[index] = str(error)
            if len(corrupt) > self.max_corrupt:
                break
        raise TooManyCorruptRecords(corrupt_message(corrupt, total=len(self), allowed=self.max_corrupt))

    def _sample(self, index: int, *, group: int) -> dict[str, Any]:
        record: Record = self.source[index]
        image = self.transforms[group](record.image)
        if self.flip_seed is not None and flips(self.flip_seed, self.epoch, index):
            image = image.flip(-1)
        return {"image": image, "label": record.label, "caption": record.caption, "index": index}


def corrupt_message(corrupt: dict[int, str], *, total: int, allowed: int) -> str:
    """Say how many records are unreadable, show the first three and what to do."""
    shown = "; ".join(f"record {index}: {reason}" for index, reason in list(corrupt.items())[:3])
    return (
        f"{len(corrupt)} of {total} records are unreadable, {allowed} are allowed: {shown}. "
        "Repair or remove them, or raise max_corrupt_share"
    )
