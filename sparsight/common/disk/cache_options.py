"""Options of a cache of samples."""

from __future__ import annotations

from dataclasses import dataclass

from sparsight.common.errors import require


@dataclass(frozen=True)
class CacheOptions:
    """Where a cache of samples lies, and how.

    Args:
        folder: Of caches, or the folder of one, which must then have been made with these settings.
        shard_size: Samples of a file.
        verify_days: Compare shards with their checksums when they were not for so many days: 0 for every time, ``null``
            for never, unless they changed since they were written. It reads the whole cache.

    Raises:
        ValueError: A number is out of range.
    """

    folder: str
    shard_size: int = 64
    verify_days: int | None = 30

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.shard_size >= 1, "shard_size", self.shard_size, "1 or more")
        days = self.verify_days
        require(days is None or days >= 0, "verify_days", days, "0 or more, or null")
