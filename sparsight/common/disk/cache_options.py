"""Options of a cache of samples: how it is kept, and how it is filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sparsight.common.errors import require

Stored = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class CacheOptions:
    """Where a cache of samples lies, and how.

    Args:
        folder: Of caches, or the folder of one, which must then have been made with these settings.
        shard_size: Samples of a file.
        verify_days: Compare shards with their checksums when they were not for so many days: 0 for every time, ``null``
            for never, unless they changed since they were written. It reads the whole cache.
        dtype: Of the tensors on disk: half precision takes half the space. Batches are not in it.

    Raises:
        ValueError: An option is out of range.
    """

    folder: str
    shard_size: int = 64
    verify_days: int | None = 30
    dtype: Stored = "float32"

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.shard_size >= 1, "shard_size", self.shard_size, "1 or more")
        days = self.verify_days
        require(days is None or days >= 0, "verify_days", days, "0 or more, or null")
        require(self.dtype in get_args(Stored), "dtype", repr(self.dtype), ", ".join(get_args(Stored)))


@dataclass(frozen=True, kw_only=True)
class CacheCompute:
    """How a cache is filled, which changes nothing of it but rounding.

    Args:
        device: Where: ``cpu``, ``cuda`` ..., or ``auto``, which is where the trainer trains, or the first GPU if there
            is one.
        batch_size: Samples computed together.

    Raises:
        ValueError: ``batch_size`` is out of range.
    """

    device: str = "auto"
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
