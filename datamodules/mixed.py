"""Several record sources as one."""

from __future__ import annotations

import numpy as np

from datamodules.records import Record, RecordSource, digest
from datamodules.sampler import derive_seed


class MixedRecords(RecordSource):
    """The records of several sources, one source after the other; shuffling is the datamodule's.

    Args:
        sources: The sources.
        limits: Most records of each source, drawn with the seed, ``None`` for all; ``None`` takes all of every source.
        seed: Decides which records are drawn.

    Raises:
        ValueError: There is no source, or the limits are not one positive number, or ``None``, for each.
    """

    def __init__(self, sources: list[RecordSource], limits: list[int | None] | None = None, seed: int = 0) -> None:
        self.sources = sources
        self.limits: list[int | None] = [None] * len(sources) if limits is None else limits
        self.seed = seed
        self._chosen: list[tuple[int, int]] = []  # source, and position in it, of every record
        if not sources:
            raise ValueError("sources is empty; give at least one record source")
        if len(self.limits) != len(sources) or any(limit is not None and limit < 1 for limit in self.limits):
            raise ValueError(f"limits is {limits}; give 1 or more, or null, for each of {len(sources)} sources")

    def prepare(self) -> None:
        """Download what the sources need."""
        for source in self.sources:
            source.prepare()

    def _open(self) -> None:
        for number, (source, limit) in enumerate(zip(self.sources, self.limits, strict=True)):
            source.open()
            order = np.random.default_rng(derive_seed(self.seed, number)).permutation(len(source))[:limit]
            self._chosen += [(number, int(index)) for index in np.sort(order)]

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, if all sources that name any name the same."""
        named = [classes for source in self.sources if (classes := source.classes) is not None]
        return named[0] if named and all(classes == named[0] for classes in named) else None

    def __len__(self) -> int:
        """Number of records of all sources."""
        self.open()
        return len(self._chosen)

    def __getitem__(self, index: int) -> Record:
        """A record of the source that it belongs to."""
        source, place = self._find(index)
        return source[place]

    def where(self, index: int) -> str:
        """Where a record of one of the sources comes from."""
        source, place = self._find(index)
        return source.where(place)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture."""
        source, place = self._find(index)
        return source.size(place)

    def label_of(self, index: int) -> int | None:
        """Class number of a record, in its own source."""
        source, place = self._find(index)
        return source.label_of(place)

    def caption_of(self, index: int) -> str | None:
        """Caption of a record."""
        source, place = self._find(index)
        return source.caption_of(place)

    def extent(self, index: int) -> tuple[int, int]:
        """Number of pictures and of characters of a record."""
        source, place = self._find(index)
        return source.extent(place)

    def fingerprint(self) -> str:
        """Covers the sources, and which of their records are taken."""
        return digest([self.limits, self.seed, *(source.fingerprint() for source in self.sources)])

    def _find(self, index: int) -> tuple[RecordSource, int]:
        self.open()
        number, place = self._chosen[index]
        return self.sources[number], place
