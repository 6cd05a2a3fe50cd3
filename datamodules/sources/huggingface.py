"""Hugging Face data sets, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, decode_image, image_size
from datamodules.sources.huggingface_tables import check_columns, check_words_are_kept, is_image_type, load_rows
from datamodules.sources.identity import Part
from datamodules.sources.labels import Labels, name_numbers, number_labels, numbers_by_name
from datamodules.sources.records import CorruptRecord, Record, RecordSource
from sparsight.common.disk.inputs import need_local
from sparsight.common.text import BadText, clean_text

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceRecords(RecordSource):
    """Rows of one split of a Hugging Face data set.

    Args:
        path: Hub id, folder written by ``save_to_disk``, or folder that ``datasets.load_dataset`` understands.
        name: Configuration of a data set that has several.
        split: Split, such as ``train``; hub data sets also take slices such as ``train[:10%]``.
        revision: Branch, tag or commit of a hub data set; give a commit for a run that can be repeated.
        image_column: Column of images.
        label_column: Column of labels (class labels, whole numbers or names), or ``None``.
        caption_column: Column of captions, or ``None``.
        max_pixels: Images with more pixels are refused.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        caption_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path = path
        self.name = name
        self.split = split
        self.revision = revision
        self.image_column = image_column
        self.label_column = label_column
        self.caption_column = caption_column
        self.max_pixels = check_max_pixels(max_pixels)
        self._classes: list[str] | None = None
        self._rows: Dataset | None = None
        self._labels: Labels | None = None

    @property
    def classes(self) -> list[str] | None:
        """Names of the class labels once the data set is open, or of the names in the label column, sorted."""
        return self._classes

    @property
    def highest_label(self) -> int | None:
        """Highest class number that occurs, once the data set is open."""
        numbers = [] if self._labels is None else self._labels.numbers
        return max((number for number in numbers if number is not None), default=None)

    def check_paths(self) -> None:
        """See that a path which cannot be an id of the hub is there."""
        need_local(self.path, what="path")

    @property
    def is_local(self) -> bool:
        """Whether the path is a folder here, and no id of the hub."""
        return Path(self.path).exists()

    def prepare(self) -> None:
        """Download the data set into the cache, if it is not there."""
        self._load()

    def __len__(self) -> int:
        """Number of rows."""
        self.open()
        assert self._rows is not None
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Decode one row."""
        row = self._row(index)
        caption = self._caption(row)
        label = self.label_of(index)
        image = decode_image(self._image(row[self.image_column]), max_pixels=self.max_pixels)
        return Record(id=str(index), image=image, label=label, caption=caption)

    def where(self, index: int) -> str:
        """Row, and data set or file."""
        return f"row {index} of {self.path}"

    def caption_of(self, index: int) -> str | None:
        """Caption of one row."""
        return None if self.caption_column is None else self._caption(self._row(index))

    def label_of(self, index: int) -> int | None:
        """Class number of one row."""
        self.open()
        if self._labels is not None and index in self._labels.bad:
            raise CorruptRecord(f"column {self.label_column!r}: {self._labels.bad[index]}")
        return None if self._labels is None else self._labels.numbers[index]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        return image_size(self._image(self._row(index)[self.image_column]))

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` keeps of the chosen columns."""
        self.open()
        assert self._rows is not None
        return str(self._rows._fingerprint)

    def content(self) -> Iterator[object]:
        """The columns that are used, row by row, whatever files they lie in."""
        self.open()
        assert self._rows is not None
        try:
            for rows in self._rows.with_format("arrow").iter(batch_size=1000):
                for row in zip(*(rows.column(name) for name in rows.column_names), strict=True):
                    for value in row:
                        yield from self._parts(value)
        except Exception as error:  # of Arrow, on damaged files; the rows before are told
            yield type(error).__name__

    def _parts(self, value: Any) -> Iterator[object]:
        """A value of Arrow: images, which stay where they are in memory or on disk, or anything else."""
        inner = getattr(value.type, "value_type", None)  # Arrow's lists have one, of several classes
        if inner is not None and is_image_type(inner):
            for each in value.values or ():
                yield from self._parts(each)
        elif not is_image_type(value.type) or not value.is_valid:
            yield value.as_py()
        elif value["bytes"].is_valid:
            data = value["bytes"].as_buffer()
            yield Part("", data.size, data)
        elif value["path"].is_valid:
            path = Path(value["path"].as_py())
            yield Part.of_file(path, name=path.name)

    def _row(self, index: int, columns: Dataset | None = None) -> dict[str, Any]:
        """A row of some columns, or of all that are used."""
        self.open()
        rows: Any = self._rows if columns is None else columns
        try:
            row: dict[str, Any] = rows[int(index)]
        except Exception as error:  # of Arrow, on texts that are not UTF-8, say
            raise CorruptRecord(f"{self.where(index)} cannot be read: {type(error).__name__}: {error}") from error
        return row

    def _caption(self, row: dict[str, Any]) -> str | None:
        if self.caption_column is None:
            return None
        if row[self.caption_column] is None:
            raise CorruptRecord(f"column {self.caption_column!r} is empty")
        try:
            return clean_text(row[self.caption_column], what=f"column {self.caption_column!r}")
        except BadText as error:
            raise CorruptRecord(str(error)) from error

    def _open(self) -> None:
        from datasets import Image

        rows = self._load()
        check_words_are_kept(Path(self.path), [c for c in (self.caption_column, self.label_column) if c is not None])
        check_columns(rows.features, self)
        columns = [c for c in (self.image_column, self.caption_column, self.label_column) if c is not None]
        rows = rows.select_columns(list(dict.fromkeys(columns)))
        # Left encoded, so that a damaged image is found, and skipped, when its row is read.
        self._rows = rows.cast_column(self.image_column, Image(decode=False))
        self._read_labels(rows)

    def _load(self) -> Dataset:
        from datasets import Dataset, load_from_disk  # slow to import: only when it is used

        folder = Path(self.path)
        if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            try:
                return load_rows(self.path, self.name, split=self.split, revision=self.revision)
            except (ConnectionError, FileNotFoundError) as error:
                raise FileNotFoundError(
                    f"data set {self.path!r} was found neither as a folder with data nor on the hub: {error}"
                ) from error
            except Exception as error:  # the cause is an error of Arrow or pandas, told by one of datasets
                raise ValueError(f"data set {self.path!r} cannot be read: {error.__cause__ or error}") from error
        try:
            saved = load_from_disk(self.path)
        except Exception as error:
            raise ValueError(f"data set {self.path!r}, saved to disk, is damaged: {error}") from error
        splits = {str(saved.split or self.split): saved} if isinstance(saved, Dataset) else dict(saved)
        if self.split not in splits:
            raise ValueError(f"data set {self.path!r} has no split {self.split!r}; it has {sorted(splits)}")
        return splits[self.split]

    def _read_labels(self, rows: Dataset) -> None:
        from datasets import ClassLabel

        if self.label_column is None:
            return
        where = f"column {self.label_column!r} of {self.path!r}"
        feature = rows.features[self.label_column]
        try:
            values = list(rows[self.label_column][:])
        except Exception as error:
            raise ValueError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        names = list(feature.names) if isinstance(feature, ClassLabel) else None
        numbers = None if names is None else numbers_by_name(names)
        if numbers is not None:
            values = [numbers[value] if value is not None and value >= 0 else value for value in values]
            names = None
        labels = number_labels(values, classes=names, where=where)
        self._labels = name_numbers(labels) if isinstance(feature, ClassLabel) else labels
        self._classes = self._labels.classes

    def _image(self, value: dict[str, Any] | None) -> Path | bytes:
        if not isinstance(value, dict) or (value["bytes"] is None and value["path"] is None):
            raise CorruptRecord(f"column {self.image_column!r} is empty")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        path = Path(value["path"]).resolve()
        if not any(path.is_relative_to(root) for root in self._allowed_folders()):
            raise CorruptRecord(f"picture {value['path']!r} lies outside the data set; copy it into the folder")
        return path

    def _allowed_folders(self) -> list[Path]:
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        if Path(self.path).is_dir():
            return [Path(self.path).resolve()]
        return [Path(config.HF_DATASETS_CACHE).resolve(), Path(HF_HUB_CACHE).resolve()]
