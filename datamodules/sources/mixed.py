"""Several record sources as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from datamodules.sampler import derive_seed
from datamodules.sources.records import Record, RecordSource, digest, has_field


class MixedRecords(RecordSource):
    """The records of several sources, one source after the other; shuffling is the datamodule's.

    Where all of its sources that have labels name their classes, a class of one name is one class: the classes are
    those of the first source, then what the others have besides.

    Args:
        sources: The sources.
        limits: Most records of each source, drawn with the seed, ``None`` for all; ``None`` takes all of every source.
        seed: Decides which records are drawn.
        skips: How many of the drawn records of each source are left out first; ``None`` for none. With the same seed,
            ``limits: [100], skips: [100]`` has none of the records of ``limits: [100]``: splits of one source.

    Raises:
        ValueError: There is no source, or the limits are not one positive number, or ``None``, for each, or the skips
            not one number of 0 or more. When it is opened: some sources name their classes and others have labels
            without names, or all records of one are skipped.
    """

    def __init__(
        self,
        sources: list[RecordSource],
        limits: list[int | None] | None = None,
        seed: int = 0,
        skips: list[int] | None = None,
    ) -> None:
        self.sources = sources
        self.limits: list[int | None] = [None] * len(sources) if limits is None else limits
        self.seed = seed
        self.skips = [0] * len(sources) if skips is None else skips
        self._chosen: list[tuple[int, int]] = []  # source, and position in it, of every record
        self._classes: list[str] | None = None
        self._numbers: dict[int, list[int]] = {}  # of a source's classes among those of all, where they differ
        if not sources:
            raise ValueError("sources is empty; give at least one record source")
        if len(self.limits) != len(sources) or any(limit is not None and limit < 1 for limit in self.limits):
            raise ValueError(f"limits is {limits}; give 1 or more, or null, for each of {len(sources)} sources")
        if len(self.skips) != len(sources) or any(skip < 0 for skip in self.skips):
            raise ValueError(f"skips is {skips}; give 0 or more for each of {len(sources)} sources")

    def check_paths(self) -> None:
        """See that the files of the sources are there."""
        for source in self.sources:
            source.check_paths()

    @property
    def is_local(self) -> bool:
        """Whether all sources are."""
        return all(source.is_local for source in self.sources)

    def prepare(self) -> None:
        """Download what the sources need."""
        for source in self.sources:
            source.prepare()

    def _open(self) -> None:
        for number, (source, limit, skip) in enumerate(zip(self.sources, self.limits, self.skips, strict=True)):
            source.open()
            order = np.random.default_rng(derive_seed(self.seed, number)).permutation(len(source))[skip:][:limit]
            if skip and not len(order):
                raise ValueError(f"skips is {self.skips}: source {number + 1} has only {len(source)} records")
            self._chosen += [(number, int(index)) for index in np.sort(order)]
        named = {number: classes for number, source in enumerate(self.sources) if (classes := source.classes)}
        self._join_classes(named)

    def _join_classes(self, named: dict[int, list[str]]) -> None:
        lists = list(named.values())
        if not named or all(classes == lists[0] for classes in lists):
            self._classes = lists[0] if lists else None
        else:
            twice = next((name for names in lists for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two classes of a mixed source are named {twice!r}; give each a name of its own")
            self._classes = list(dict.fromkeys(name for names in lists for name in names))
            place = {name: number for number, name in enumerate(self._classes)}
            self._numbers = {number: [place[name] for name in names] for number, names in named.items()}
        for number, source in enumerate(self.sources):
            if named and number not in named and has_field(source, "label"):
                raise ValueError(
                    f"{type(source).__name__} of `sources` has labels without names, others name their classes "
                    f"{lists[0][:5]}: give all of them `classes`, or none"
                )

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes of all sources, once it is open; ``None`` if no source names any."""
        return self._classes

    @property
    def highest_label(self) -> int | None:
        """Highest class number that a source without names knows of."""
        found = [high for source in self.sources if (high := source.highest_label) is not None]
        return max(found, default=None) if self._classes is None else None

    @property
    def parts(self) -> Sequence[RecordSource]:
        """The sources, and what they are made of."""
        return [part for source in self.sources for part in source.parts]

    def __len__(self) -> int:
        """Number of records of all sources."""
        self.open()
        return len(self._chosen)

    def __getitem__(self, index: int) -> Record:
        """A record of the source that it belongs to."""
        source, place = self._find(index)
        record = source[place]
        return replace(record, label=self._number(index, record.label))

    def where(self, index: int) -> str:
        """Where a record of one of the sources comes from."""
        source, place = self._find(index)
        return source.where(place)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        source, place = self._find(index)
        return source.size(place)

    def label_of(self, index: int) -> int | None:
        """Class number of a record, among the classes of all sources."""
        source, place = self._find(index)
        return self._number(index, source.label_of(place))

    def caption_of(self, index: int) -> str | None:
        """Caption of a record."""
        source, place = self._find(index)
        return source.caption_of(place)

    def extent(self, index: int) -> tuple[int, int]:
        """Number of images and of characters of a record."""
        source, place = self._find(index)
        return source.extent(place)

    def fingerprint(self) -> str:
        """Covers the sources, and which of their records are taken."""
        return digest([*self._drawn, *(source.fingerprint() for source in self.sources)])

    def content(self) -> Iterator[object]:
        """What the sources are made of, and which of their records are taken."""
        yield self._drawn
        for source in self.sources:
            yield type(source).__name__
            yield from source.content()

    @property
    def _drawn(self) -> tuple[object, ...]:
        """What decides which records are taken; without skips as before there were any, so that runs know it again."""
        return self.limits, self.seed, *([self.skips] if any(self.skips) else [])

    def _number(self, index: int, label: int | None) -> int | None:
        numbers = self._numbers.get(self._chosen[index][0])
        return label if label is None or numbers is None else numbers[label]

    def _find(self, index: int) -> tuple[RecordSource, int]:
        self.open()
        number, place = self._chosen[index]
        return self.sources[number], place
