"""A folder of pictures, with classes from its subfolders and captions from a metadata file or text files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.records import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    CorruptRecord,
    Record,
    RecordSource,
    check_max_pixels,
    decode_image,
    digest,
    file_stamps,
    image_size,
    number_labels,
)

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class _Entry:
    name: str
    label: int | None
    caption: str | Path | None  # a path is that of a text file


class FolderRecords(RecordSource):
    """Pictures under one folder, in the order of their names (of the metadata's rows, if there are any).

    With ``metadata.jsonl`` or ``metadata.csv`` in the folder, its rows are the records: ``file_name`` is the picture's
    path inside the folder, other columns may hold label and caption. Without, all pictures are records: the first
    subfolder names the class, and text files of the pictures' names (``a.png``, ``a.txt``) hold captions.

    Args:
        root: The folder. Nothing outside it is read.
        classes: Names of the classes in the order of their numbers; ``None`` sorts the names that occur.
        class_folders: Take the first subfolder as class; switch it off if subfolders mean something else.
        label_column: Metadata column of labels; ``None`` means ``label`` if there is one.
        caption_column: Metadata column of captions; ``None`` means ``text`` if there is one.
        max_pixels: Pictures with more pixels are refused.
    """

    def __init__(
        self,
        root: str | Path,
        classes: list[str] | None = None,
        class_folders: bool = True,
        label_column: str | None = None,
        caption_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = Path(root)
        self.class_folders = class_folders
        self.label_column = label_column
        self.caption_column = caption_column
        self.max_pixels = check_max_pixels(max_pixels)
        self._classes = classes
        self._entries: list[_Entry] = []
        self._real_root = self.root

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction, or found in the folder once it is open."""
        return self._classes

    def __len__(self) -> int:
        """Number of pictures, readable or not."""
        self.open()
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        """Decode one picture and read its caption."""
        self.open()
        entry = self._entries[index]
        image = decode_image(self.root / entry.name, max_pixels=self.max_pixels)
        return Record(id=entry.name, image=image, label=entry.label, caption=self.caption_of(index))

    def where(self, index: int) -> str:
        """Folder, position and name of a picture."""
        self.open()
        return f"record {index} of {self.root} ({self._entries[index].name})"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, from its header."""
        self.open()
        return image_size(self.root / self._entries[index].name)

    def label_of(self, index: int) -> int | None:
        """Class number of one picture."""
        self.open()
        return self._entries[index].label

    def caption_of(self, index: int) -> str | None:
        """Caption of one picture."""
        self.open()
        caption = self._entries[index].caption
        return _read_caption(caption) if isinstance(caption, Path) else caption

    def fingerprint(self) -> str:
        """Covers names, labels and captions, and size and time of change of every file."""
        self.open()
        rows = [(entry.name, entry.label, _text(entry.caption)) for entry in self._entries]
        texts = [entry.caption for entry in self._entries if isinstance(entry.caption, Path)]
        pictures = [path for entry in self._entries if (path := self.root / entry.name).is_file()]
        return digest([*rows, *file_stamps(pictures), *file_stamps(texts)])

    def _open(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"image folder {self.root} does not exist; set `root` to a folder of pictures")
        metadata = [self.root / name for name in METADATA_NAMES if (self.root / name).is_file()]
        if len(metadata) > 1:
            raise ValueError(f"{self.root} holds both {' and '.join(METADATA_NAMES)}; keep one of them")
        self._real_root = self.root.resolve()
        if metadata:
            self._refuse_outside(metadata[0].name, named_by=f"a link in {self.root}")
            self._entries = self._from_metadata(metadata[0])
            return
        unused = {"label_column": self.label_column, "caption_column": self.caption_column}
        for option, column in unused.items():
            if column is not None:
                raise ValueError(f"{option} is {column!r} but {self.root} holds no {' or '.join(METADATA_NAMES)}")
        self._entries = self._from_files()

    # ----------------------------------------------------------------------------------------------------- metadata
    def _from_metadata(self, path: Path) -> list[_Entry]:
        rows = list(_read_rows(path))
        columns = set().union(*rows) if rows else set()
        names = [str(value) for value in _column(rows, "file_name", path=path)]
        for number, name in enumerate(names, start=1):
            self._refuse_outside(name, named_by=f"record {number} of {path}")
        label_column = _choose(self.label_column, default="label", columns=columns, path=path)
        caption_column = _choose(self.caption_column, default="text", columns=columns, path=path)
        labels: Sequence[int | None] = [None] * len(rows)
        captions: Sequence[str | None] = [None] * len(rows)
        if label_column is not None:
            values = _column(rows, label_column, path=path)
            if path.suffix == ".csv" and all(value.isdecimal() for value in values):
                values = [int(value) for value in values]
            where = f"column {label_column!r} of {path}"
            labels, self._classes = number_labels(values, classes=self._classes, where=where)
        if caption_column is not None:
            captions = [str(value) for value in _column(rows, caption_column, path=path)]
        return [_Entry(*fields) for fields in zip(names, labels, captions, strict=True)]

    # -------------------------------------------------------------------------------------------------------- files
    def _from_files(self) -> list[_Entry]:
        names = sorted(self._walk())
        folders = [Path(name).parts[0] if "/" in name else None for name in names]
        labels: Sequence[int | None] = [None] * len(names)
        named = [folder for folder in folders if folder is not None]
        if self.class_folders and named:
            if len(named) != len(names):
                loose = names[folders.index(None)]
                raise ValueError(
                    f"{self.root} holds pictures both in class folders and outside them, such as {loose!r}; "
                    "move them into a class folder or set class_folders to false"
                )
            labels, self._classes = number_labels(named, classes=self._classes, where=str(self.root))
        captions = self._sidecars(names)
        return [_Entry(*fields) for fields in zip(names, labels, captions, strict=True)]

    def _walk(self) -> Iterator[str]:
        for folder, subfolders, files in os.walk(self.root):
            inside = Path(folder).relative_to(self.root)
            for name in subfolders + files:
                if os.path.islink(os.path.join(folder, name)):
                    self._refuse_outside((inside / name).as_posix(), named_by=f"a link in {folder}")
            yield from ((inside / name).as_posix() for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES)

    def _sidecars(self, names: Sequence[str]) -> Sequence[Path | None]:
        texts = [(self.root / name).with_suffix(".txt") for name in names]
        missing = [text for text in texts if not text.is_file()]
        if len(missing) == len(texts):
            return [None] * len(texts)
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(texts)} pictures have no caption file, first {missing[0]}; add the missing "
                "ones (they may be empty) or remove all of them"
            )
        return texts

    def _refuse_outside(self, name: str, *, named_by: str) -> None:
        if not (self._real_root / name).resolve().is_relative_to(self._real_root):
            raise ValueError(f"{named_by} leads to {name!r}, outside {self.root}; copy the file into the folder")


def _text(caption: str | Path | None) -> str | None:
    return None if isinstance(caption, Path) else caption


def _read_caption(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptRecord(f"caption {path.name}: {error}") from error


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {path} is no JSON object; write one object a line")
            yield row


def _column(rows: Sequence[dict[str, Any]], name: str, *, path: Path) -> list[Any]:
    for number, row in enumerate(rows, start=1):
        if row.get(name) is None:
            raise ValueError(f"record {number} of {path} has no {name!r}; its columns are {sorted(map(str, row))}")
    return [row[name] for row in rows]


def _choose(wanted: str | None, *, default: str, columns: set[str], path: Path) -> str | None:
    if wanted is None:
        return default if default in columns else None
    if wanted not in columns:
        raise ValueError(f"{path} has no column {wanted!r}; it has {sorted(map(str, columns))}")
    return wanted
