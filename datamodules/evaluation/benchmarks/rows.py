"""Rows of a benchmark's published parquet files, from the hub or from disk, images left encoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datamodules.sources.decoding import decode_image
from datamodules.sources.records import CorruptRecord
from sparsight.common.disk.inputs import need_local

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED = ("dataset_dict.json", "state.json")  # of datasets.save_to_disk


class Rows:
    """One split of a benchmark.

    Args:
        path: Hub id, parquet file, or folder of parquet files named after their splits, as on the hub.
        config: Configuration on the hub, and the folder of that name on disk if there is one.
        split: Split.
        revision: Branch, tag or commit on the hub.
        columns: What the benchmark's columns are called here, where that differs.
        task: Name of the task, for messages.
    """

    def __init__(
        self,
        path: str,
        *,
        config: str | None,
        split: str,
        revision: str | None,
        columns: Mapping[str, str],
        task: str,
    ) -> None:
        self.path = path
        self.config = config
        self.split = split
        self.revision = revision
        self.columns = columns
        self.task = task
        self._rows: Dataset | None = None

    def check_paths(self) -> None:
        """See that a path which cannot be an id of the hub is there.

        Raises:
            FileNotFoundError: It is not.
        """
        need_local(self.path, what=f"task {self.task}: path")

    @property
    def data(self) -> Dataset:
        """All rows, opened when they are first asked for.

        Raises:
            FileNotFoundError: There are none of that name, on disk or on the hub.
            ValueError: They cannot be read, or there is no such split.
        """
        if self._rows is None:
            self._rows = _left_encoded(self._load())
        return self._rows

    def need(self, names: Sequence[str]) -> None:
        """See that columns are there.

        Raises:
            ValueError: One is not; the message names it, the file and those that there are.
        """
        there = self.data.column_names
        for name in names:
            if self.own(name) not in there:
                raise ValueError(
                    f"{self.where()} has no column {self.own(name)!r}, which holds the {name} of task {self.task}; it "
                    f"has {', '.join(there)}. If one of these holds it, say so: columns: {{{name}: its name}}"
                )

    def has(self, name: str) -> bool:
        """Whether a column is there."""
        return self.own(name) in self.data.column_names

    def own(self, name: str) -> str:
        """What a benchmark's column is called here."""
        return self.columns.get(name, name)

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return list(self.data[self.own(name)][:])

    def texts(self, name: str, most: int) -> Iterator[Any]:
        """The first values of a column; other columns, such as images, are not read."""
        yield from self.data.select_columns([self.own(name)])[: min(most, len(self.data))][self.own(name)]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row, by the benchmark's names of columns.

        Raises:
            CorruptRecord: It cannot be read.
        """
        back = {there: name for name, there in self.columns.items()}
        try:
            row: dict[str, Any] = self.data[int(index)]
        except Exception as error:  # of Arrow, on texts that are not UTF-8, say
            raise CorruptRecord(f"{type(error).__name__}: {error}") from error
        return {back.get(name, name): value for name, value in row.items()}

    def where(self, index: int | None = None) -> str:
        """Data set and split, and number of a row."""
        place = self.path if self.config is None else f"{self.path} ({self.config})"
        return f"{'' if index is None else f'row {index} of '}{place}, split {self.split}"

    def fingerprint(self) -> str:
        """That which ``datasets`` keeps of the rows."""
        return str(self.data._fingerprint)

    # ------------------------------------------------------------------------------------------------------- loading
    def _load(self) -> Dataset:
        path = Path(self.path)
        if path.is_file():
            return self._parquet([path])
        if not path.is_dir():
            return self._from_hub()
        if any((path / name).is_file() for name in _SAVED):
            return self._saved()
        folder = path / self.config if self.config is not None and (path / self.config).is_dir() else path
        files = sorted(file for file in folder.rglob("*.parquet") if _split_of(file) == self.split)
        if not files:
            there = sorted({_split_of(file) for file in folder.rglob("*.parquet")})
            raise FileNotFoundError(
                f"task {self.task}: {folder} holds no parquet files of split {self.split!r}, such as "
                f"{self.split}-00000-of-00001.parquet or {self.split}.parquet; "
                + (f"it has those of {', '.join(there)}: set split" if there else "it has none of any: see path")
            )
        return self._parquet(files)

    def _parquet(self, files: Sequence[Path]) -> Dataset:
        from datasets import load_dataset  # slow to import: only when it is used

        try:
            return load_dataset("parquet", data_files=[escape(str(file)) for file in files], split="train")
        except Exception as error:  # the cause is an error of Arrow, told by one of datasets
            raise ValueError(
                f"task {self.task}: {files[0]} cannot be read as parquet: {error.__cause__ or error}"
            ) from error

    def _saved(self) -> Dataset:
        from datasets import Dataset, load_from_disk

        saved = load_from_disk(self.path)
        splits = {str(saved.split or self.split): saved} if isinstance(saved, Dataset) else dict(saved)
        if self.split not in splits:
            raise ValueError(f"task {self.task}: {self.path} has no split {self.split!r}; it has {', '.join(splits)}")
        return splits[self.split]

    def _from_hub(self) -> Dataset:
        from datasets import load_dataset

        try:
            return load_dataset(self.path, self.config, split=self.split, revision=self.revision)
        except Exception as error:
            raise _told_of_hub(error, self) from error


def _told_of_hub(error: Exception, rows: Rows) -> Exception:
    """What went wrong with a data set on the hub, and what to do."""
    from datasets.exceptions import DatasetNotFoundError

    about, text = f"task {rows.task}: data set {rows.path!r}", str(error)
    if "gated" in text.lower():
        return FileNotFoundError(
            f"{about} is gated: accept its terms on its page of the hub, log in with `hf auth login`; or "
            f"set path to a folder with its parquet files ({text})"
        )
    if isinstance(error, DatasetNotFoundError | ConnectionError | FileNotFoundError):
        return FileNotFoundError(
            f"{about} was found neither on disk nor on the hub: see to the name and the connection, or set path to a "
            f"folder with its parquet files ({text})"
        )
    # an unknown split or configuration lists those that there are
    return ValueError(f"{about} cannot be read with config {rows.config!r} and split {rows.split!r}: {text}")


def _split_of(file: Path) -> str:
    """``test`` of ``test-00000-of-00003.parquet``, ``test.parquet`` and ``test/0000.parquet``."""
    stem = file.stem
    name, dash, rest = stem.partition("-")
    if dash and rest[:1].isdigit():
        return name
    return file.parent.name if stem.isdigit() else stem


def _left_encoded(rows: Dataset) -> Dataset:
    """Images, alone or in lists, are decoded when a row is read, so that a damaged one is found then."""
    from datasets import Image as ImageFeature
    from datasets import List

    for name, kind in rows.features.items():
        if isinstance(kind, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
        elif isinstance(kind, List) and isinstance(kind.feature, ImageFeature):
            rows = rows.cast_column(name, List(ImageFeature(decode=False)))
    return rows


def decoded(value: Any, *, column: str, max_pixels: int) -> Image.Image:
    """An image of a row: bytes, a structure with ``bytes`` and ``path``, or base64.

    Raises:
        CorruptRecord: There is none, it lies elsewhere, or it cannot be decoded.
    """
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise CorruptRecord(f"column {column!r} holds a text that is no image in base64: {error}") from error
    if not isinstance(data, bytes) or not data:
        other = value.get("path") if isinstance(value, Mapping) else None
        told = f"only names a file, {other!r}; images must lie in the parquet files" if other else "is empty"
        raise CorruptRecord(f"column {column!r} {told}")
    return decode_image(data, max_pixels=max_pixels)
