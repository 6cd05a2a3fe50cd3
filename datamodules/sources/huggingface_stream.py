"""Hugging Face data sets that are read while they are fetched, or from files too many to convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, decode_image
from datamodules.sources.files import FolderFiles
from datamodules.sources.huggingface_tables import check_columns, load_rows
from datamodules.sources.identity import Part
from datamodules.sources.labels import ClassNumbers, NotALabel, numbers_by_name, refuse_names
from datamodules.sources.records import CorruptRecord, Record, RecordStream
from sparsight.common.disk.inputs import find_files, need_local
from sparsight.common.text import BadText, clean_text

if TYPE_CHECKING:
    from datasets import IterableDataset

_LOOKED_AT = 16  # rows


class HuggingFaceStream(RecordStream):
    """Rows of one split of a Hugging Face data set, streamed; images must lie in its files, as bytes.

    Its shards are its files. Resuming in the middle of one reads over the rows that were seen.

    Args:
        path: Hub id, local folder, or ``parquet`` and the like together with ``files``.
        files: Local files by path or pattern, or a list of them, for ``path: parquet`` and the like.
        name: Configuration of a data set that has several.
        split: Split.
        revision: Branch, tag or commit of a hub data set; give a commit for a run that can be repeated.
        image_column: Column of images.
        label_column: Column of labels (class labels, whole numbers, true and false, or names), or ``None``.
        caption_column: Column of captions, or ``None``.
        max_pixels: Images with more pixels are refused.
        classes: Names of the classes in the order of their numbers, where labels are names that the data set does not
            declare.
    """

    def __init__(
        self,
        path: str,
        files: str | list[str] | None = None,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        caption_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
        classes: list[str] | None = None,
    ) -> None:
        self.path = path
        self.files = files
        self.name = name
        self.split = split
        self.revision = revision
        self.image_column = image_column
        self.label_column = label_column
        self.caption_column = caption_column
        self.max_pixels = check_max_pixels(max_pixels)
        self._classes = classes
        self._number_of = ClassNumbers(None)
        self._names: list[str] | None = None  # of class labels
        self._numbers: list[int] | None = None  # of them, where they are named by others than their own
        self._files: list[tuple[str, Path]] = []  # names inside the data, and where they are
        self._rows: IterableDataset | None = None

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction, or those of the class labels, once the stream is open."""
        return self._classes

    @property
    def shards(self) -> int:
        """Number of files."""
        assert self._rows is not None
        return self._rows.num_shards

    def check_paths(self) -> None:
        """See that every path and pattern has files."""
        need_local(self.path, what="path")
        if self.files is not None:
            find_files(self.files, what="files")

    def _open(self) -> None:
        from datasets import Image  # slow to import: only when it is used

        found: list[str] | None = None
        if self.files is not None:
            paths = find_files(self.files, what="files")
            found, self._files = [escape(str(path)) for path in paths], [(path.name, path) for path in paths]
        elif Path(self.path).is_dir():
            names = FolderFiles(Path(self.path), refuse_outside=False).names
            self._files = [(name, Path(self.path, name)) for name in names]
        try:
            rows = load_rows(
                self.path, self.name, files=found, split=self.split, revision=self.revision, streaming=True
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"data set {self.path!r} was found neither as a folder with data nor on the hub: {error}"
            ) from error
        try:
            features: Any = rows.features
            if features is None:  # such as those of json files
                rows = rows._resolve_features()
                features = rows.features or {}
        except Exception as error:  # of Arrow, on a damaged file
            raise ValueError(f"data set {self.path!r} cannot be read: {error.__cause__ or error}") from error
        check_columns(features, self)
        if self.label_column is not None:
            self._find_classes(features[self.label_column], rows)
        self._rows = rows.cast_column(self.image_column, Image(decode=False))

    def content(self) -> Iterator[Part]:
        """The files, where they are on this machine."""
        return (Part.of_file(path, name=name) for name, path in self._files)

    def _find_classes(self, kind: Any, rows: IterableDataset) -> None:
        from datasets import ClassLabel

        if isinstance(kind, ClassLabel):
            self._names = list(kind.names)
            self._numbers = numbers_by_name(kind.names) if self._classes is None else None
            if self._classes is None:
                self._classes = self._names if self._numbers is None else _ordered(self._numbers)
        elif kind.dtype == "bool":
            self._classes = self._classes or ["false", "true"]
        elif self._classes is None and "string" in kind.dtype:
            column = rows.select_columns([self.label_column])
            first = [row[self.label_column] for row in column.take(_LOOKED_AT)]
            refuse_names(first, where=f"column {self.label_column!r} of {self.path!r}")
        self._number_of = ClassNumbers(self._classes if self._numbers is None else None)

    def _label_of(self, row: Mapping[str, Any]) -> int | None:
        if self.label_column is None:
            return None
        value = row[self.label_column]
        if self._names is not None and value is not None and value >= 0:
            value = self._names[value] if self._numbers is None else self._numbers[value]
        try:
            return self._number_of(value)
        except NotALabel as error:
            raise CorruptRecord(f"column {self.label_column!r}: {error}") from error

    def where(self, shard: int, position: int) -> str:
        """Row, and file or data set."""
        if self.files is not None and len(self._files) == self.shards:
            return f"row {position} of {self._files[shard][1]}"
        return f"row {position} of shard {shard} of {self.path}"

    def read(self, shard: int, start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows of a file, images still encoded."""
        assert self._rows is not None
        rows = self._rows.shard(num_shards=self.shards, index=shard)
        for number, row in enumerate(rows.skip(start) if start else rows, start=start):
            yield f"{shard}/{number}", row

    def decode(self, raw: tuple[str, dict[str, Any]]) -> Record:
        """Decode one row."""
        key, row = raw
        encoded = row[self.image_column]
        if not isinstance(encoded, dict) or encoded["bytes"] is None:
            raise CorruptRecord(f"column {self.image_column!r} holds no picture's bytes")
        label = self._label_of(row)
        try:
            column = self.caption_column
            caption = None if column is None else clean_text(row[column], what=f"column {column!r}")
        except BadText as error:
            raise CorruptRecord(str(error)) from error
        image = decode_image(encoded["bytes"], max_pixels=self.max_pixels)
        return Record(id=key, image=image, label=label, caption=caption)


def _ordered(numbers: Sequence[int]) -> list[str] | None:
    """Names of classes that are numbers, if all from 0 on are there."""
    return [str(number) for number in sorted(numbers)] if sorted(numbers) == list(range(len(numbers))) else None
