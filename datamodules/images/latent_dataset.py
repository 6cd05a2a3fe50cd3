"""Encoded images: which row of a cache is which sample, and batches of them.

A cache's rows lie size by size, so that every shard's tensors have one shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.images.image_dataset import ImageDataset, flips
from datamodules.sources.records import array_digest
from sparsight.common.disk.sample_cache import SampleCache, Shard, cut
from sparsight.common.disk.shard_reader import ShardReader
from sparsight.diffusion.families.conditioning import map_condition, nest_condition
from sparsight.diffusion.model.encoding import COND, text_of


class LatentRows:
    """Which row of a cache belongs to which sample of an image data set.

    After all samples come rows with the empty text condition, one for every size.

    Args:
        images: The data set.
        shard_size: Rows of a shard.
        text: Whether the teacher is conditioned on text.
    """

    def __init__(self, images: ImageDataset, *, shard_size: int, text: bool) -> None:
        self.images = copy(images)
        self.images.flip_seed = None  # mirrored images are encoded apart
        self.flip_seed = images.flip_seed
        self.text = text
        self.shard_size = shard_size
        used, self.groups = np.unique(images.groups, return_inverse=True)
        transforms = [images.transforms[group] for group in used]
        self.sizes = [(transform.height, transform.width) for transform in transforms]
        self.order = np.argsort(self.groups, kind="stable")
        counts = np.bincount(self.groups).tolist()
        self.shards = cut(*counts, *([1] * len(counts) if text else []), size=shard_size)

    def settings(self, dtype: str) -> dict[str, Any]:
        """All that decides the content of a cache besides the teacher."""
        source, transform = self.images.source, self.images.transforms[0]
        options = {key: value for key, value in asdict(transform).items() if key not in ("height", "width")}
        return {
            "source": {"class": type(source).__name__, "length": len(source), "fingerprint": source.fingerprint()},
            "records": array_digest(self.images.indices),
            "transform": options,
            "sizes": [list(size) for size in self.sizes],
            "sizes_of_records": array_digest(self.groups),
            "mirrored": self.flip_seed is not None,
            "dtype": dtype,
            "shard_size": self.shard_size,
        }

    def size_of_unconditional(self, shard: Shard) -> tuple[int, int] | None:
        """Size whose empty condition a shard holds; ``None`` for a shard of samples."""
        return None if shard.first < len(self.order) else self.sizes[shard.first - len(self.order)]


class LatentDataset(Dataset):
    """Encoded images of a filled cache.

    Args:
        cache: The cache.
        rows: Where which sample is.
    """

    def __init__(self, cache: SampleCache, rows: LatentRows) -> None:
        self.cache = cache
        self.source = rows.images.source
        self.groups, self.flip_seed = rows.groups, rows.flip_seed
        self.max_corrupt = rows.images.max_corrupt
        self.epoch = 0
        self._indices, self._order = rows.images.indices, rows.order
        self._row = np.argsort(rows.order)  # of every position
        self._shards = [shard for shard in rows.shards if shard.first < len(rows.order)]
        self._first = np.array([shard.first for shard in self._shards])
        self._reader = ShardReader(cache)
        self._names = self._reader.names(0)
        last = len(self._shards)
        self._unconditional = [
            nest_condition({n: self._reader.column(last + group, n) for n in self._reader.names(last + group)}, COND)
            for group in range(len(rows.sizes) if rows.text else 0)
        ]

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch that flips depend on; called before workers start."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._row)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The tensors of one sample."""
        row = self._row[position]
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        place = int(row - self._first[number])
        item = {name: self._reader.row(number, place, name) for name in self._names if name not in ("sample", "index")}
        index = int(self._reader.row(number, place, "index"))
        mirrored = self.flip_seed is not None and flips(self.flip_seed, self.epoch, index)
        sample = self._reader.row(number, (place, int(mirrored)), "sample").float()
        return item | {"sample": sample, "index": index, "group": self.groups[position]}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of samples of one size."""
        batch: dict[str, Any] = {
            "sample": torch.stack([item["sample"] for item in items]),
            "index": torch.tensor([item["index"] for item in items]),
            "corrupt": {},
        }
        if "label" in items[0]:
            batch["label"] = torch.stack([item["label"] for item in items])
        if "caption" in items[0]:
            batch["caption"] = [text_of(item["caption"]) for item in items]
        if self._unconditional:
            empty = self._unconditional[items[0]["group"]]
            parts = {
                name: torch.stack([item[name] for item in items]) for name in items[0] if name.startswith(f"{COND}.")
            }
            batch["cond"] = map_condition(lambda part, like: part.to(like.dtype), nest_condition(parts, COND), empty)
            batch["uncond"] = map_condition(lambda part: part.expand(len(items), *part.shape[1:]), empty)
        return batch

    def stored_indices(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For every shard the records that it holds and those that it should hold, two int64 arrays."""
        for shard in self._shards:
            wanted = self._indices[self._order[shard.first : shard.first + shard.count]]
            yield self._reader.column(shard.number, "index")[: shard.count].numpy(), wanted
