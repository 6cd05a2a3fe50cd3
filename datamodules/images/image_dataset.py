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

from datamodules.record_dataset import RecordDataset, join_corrupt
from datamodules.sources.records import CorruptRecord, RecordSource, has_field

Fit = Literal["crop", "pad", "stretch"]
FIELDS: tuple[Literal["label"], Literal["caption"]] = ("label", "caption")
_DEEP_MODES = ("I", "F")


def flatten_image(image: Image.Image, *, channels: int, background: int) -> Image.Image:
    """Picture of 1 (grey) or 3 (RGB) channels of 8 bits, with a grey value of 0 to 255 behind transparent pixels.

    Raises:
        CorruptRecord: If the image has more than 8 bits a channel, which would be clipped silently.
    """
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise CorruptRecord(f"image mode {image.mode} has more than 8 bits a channel; convert it to 8 bits")
    mode = "L" if channels == 1 else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    canvas = Image.new("RGBA", image.size, (background,) * 3 + (255,))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert(mode)


@dataclass(frozen=True)
class ImageTransform:
    """Brings any image to one size and channel count.

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
        image = self._resized(flatten_image(image, channels=self.channels, background=self.background))
        pixels_HWC = np.asarray(image, dtype=np.float32).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 127.5 - 1.0

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
    """Stack samples into a batch; keys that no sample has are left out.

    Raises:
        ValueError: Some samples have a label or a caption and others have none.
    """
    batch: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "corrupt": join_corrupt(samples),
    }
    for name in FIELDS:
        values = [sample[name] for sample in samples]
        missing = [sample["index"] for sample in samples if sample[name] is None]
        if not missing:
            batch[name] = torch.tensor(values, dtype=torch.int64) if name == "label" else values
        elif len(missing) < len(values):
            raise ValueError(f"record {missing[0]} has no {name}, others of its batch have: give all a {name}, or none")
    return batch


class ImageDataset(RecordDataset):
    """Chosen records of a source as tensors.

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
        super().__init__(source, indices=indices, groups=groups, max_corrupt=max_corrupt)
        self.transforms = transforms
        self.flip_seed = flip_seed
        self._has = {name: has_field(source, name) for name in FIELDS}

    def sample(self, index: int, *, group: int) -> dict[str, Any]:
        """Image, label and caption of one record.

        Raises:
            CorruptRecord: It cannot be read, or other records have a label or caption and it has none, or the reverse.
        """
        record = self.source[index]
        for name in FIELDS:
            value = record.label if name == "label" else record.caption
            if (value is not None) != self._has[name]:
                raise CorruptRecord(f"it has {'a' if value is not None else 'no'} {name}, unlike the others")
        image = self.transforms[group](record.needed_image)
        if self.flip_seed is not None and flips(self.flip_seed, self.epoch, index):
            image = image.flip(-1)
        return {"image": image, "label": record.label, "caption": record.caption}
