"""Samples of a cache, read row by row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsight.common.disk.sample_cache import SampleCache
from sparsight.common.errors import ConfigurationError


class ShardReader:
    """Rows of shards, read from memory-mapped files, which are opened when they are first asked for.

    Args:
        cache: Filled cache.
        open_files: How many shards stay open.
    """

    def __init__(self, cache: SampleCache, *, open_files: int = 128) -> None:
        self.cache, self.open_files = cache, open_files
        self._open = lru_cache(open_files)(self._open_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reader, (self.cache, self.open_files)  # open files stay in the process that opened them

    def _open_shard(self, number: int) -> Any:
        path = self.cache.path(number)
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(
                f"{path} was damaged or taken away after this run began ({error}): begin again, and it is made anew"
            ) from error

    def row(self, number: int, row: int | tuple[int, ...], name: str) -> Tensor:
        """One sample's tensor, or what lies at further indices in it."""
        return self._open(number).get_slice(name)[row]

    def names(self, number: int) -> list[str]:
        """Names of a shard's tensors."""
        return list(self._open(number).keys())

    def column(self, number: int, name: str) -> Tensor:
        """One tensor of all samples of a shard."""
        return self._open(number).get_tensor(name)


def _reader(cache: SampleCache, open_files: int) -> ShardReader:
    return ShardReader(cache, open_files=open_files)
