"""A folder of images, with classes from its subfolders and captions from a metadata file or text files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.sources.beside import caption_files, is_image, refuse_missing, sort_out
from datamodules.sources.files import FolderFiles, file_stamps, is_inside
from datamodules.sources.identity import Part
from datamodules.sources.labels import Labels, name_numbers, number_labels
from datamodules.sources.metadata import (
    FILE_NAME,
    METADATA_NAMES,
    Row,
    columns_of,
    find_column,
    find_metadata,
    read_rows,
)
from datamodules.sources.records import (
    MAX_PIXELS,
    CorruptRecord,
    Record,
    RecordSource,
    check_max_pixels,
    decode_image,
    digest,
    image_size,
)
from sparsight.common.disk.inputs import existing, need_folder
from sparsight.common.text import BadText, check_text, clean_text, read_caption


@dataclass(frozen=True)
class _Entry:
    name: str
    label: int | None = None
    caption: str | Path | None = None  # a path is that of a text file
    bad: str = ""  # why it cannot be used


class FolderRecords(RecordSource):
    """Pictures under one folder, in the order of their names (of the metadata's rows, if there are any).

    With ``metadata.jsonl`` or ``metadata.csv`` in the folder, its rows are the records: ``file_name`` is the image's
    path inside the folder, other columns may hold label and caption. Without, all images are records: the first
    subfolder names the class, and text files of the images' names (``a.png``, ``a.txt`` or ``a.caption``) hold
    captions. Links are followed inside the folder; hidden files, and what systems leave behind, are no part of it.

    Args:
        root: The folder. Nothing outside it is read.
        classes: Names of the classes in the order of their numbers; ``None`` sorts the names that occur.
        class_folders: Take the first subfolder as class; switch it off if subfolders mean something else.
        label_column: Metadata column of labels; ``None`` means ``label`` if there is one.
        caption_column: Metadata column of captions; ``None`` means ``text`` if there is one.
        max_pixels: Images with more pixels are refused.
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
        self._unused: list[str] = []
        self._notes: list[str] = []

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction, or found in the folder once it is open."""
        return self._classes

    def __len__(self) -> int:
        """Number of images, readable or not."""
        self.open()
        return len(self._entries)

    @property
    def highest_label(self) -> int | None:
        """Highest class number that occurs, once the folder is open."""
        return max((entry.label for entry in self._entries if entry.label is not None), default=None)

    @property
    def unused(self) -> list[str]:
        """Files that are neither a record nor go with one, once the folder is open."""
        return self._unused

    @property
    def notes(self) -> list[str]:
        """Columns and files beside images that are not read, once the folder is open."""
        return self._notes

    def __getitem__(self, index: int) -> Record:
        """Decode one image and read its caption."""
        entry = self._entry(index)
        image = decode_image(self.root / entry.name, max_pixels=self.max_pixels)
        return Record(id=entry.name, image=image, label=entry.label, caption=self.caption_of(index))

    def where(self, index: int) -> str:
        """Folder, position and name of an image."""
        self.open()
        return f"record {index} of {self.root} ({self._entries[index].name})"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        return image_size(self.root / self._entry(index).name)

    def label_of(self, index: int) -> int | None:
        """Class number of one image."""
        return self._entry(index).label

    def caption_of(self, index: int) -> str | None:
        """Caption of one image."""
        caption = self._entry(index).caption
        try:
            return read_caption(caption) if isinstance(caption, Path) else caption
        except BadText as error:
            raise CorruptRecord(str(error)) from error

    def fingerprint(self) -> str:
        """Covers names, labels and captions, and size and time of change of every file."""
        self.open()
        rows = [(entry.name, entry.label, _text(entry.caption), entry.bad) for entry in self._entries]
        texts = [entry.caption for entry in self._entries if isinstance(entry.caption, Path)]
        named = (self.root / entry.name for entry in self._entries if not entry.bad)
        images = [path for path in named if os.path.isfile(path)]
        return digest([*rows, *file_stamps(images), *file_stamps(texts)])

    def content(self) -> Iterator[object]:
        """Names, labels, captions and files."""
        self.open()
        for entry in self._entries:
            if entry.bad:  # the reason names the place
                yield None
                continue
            yield entry.label, _text(entry.caption)
            yield Part.of_file(self.root / entry.name, name=entry.name)
            if isinstance(entry.caption, Path):
                yield Part.of_file(entry.caption, name="")

    def check_paths(self) -> None:
        """See that the folder is there."""
        need_folder(self.root, what="root", holds="pictures")

    def _open(self) -> None:
        self.check_paths()
        metadata = find_metadata(self.root)
        if metadata is not None:
            self._refuse_outside(metadata, named_by=f"a link in {self.root}")
            self._entries = self._from_metadata(metadata)
            return
        unused = {"label_column": self.label_column, "caption_column": self.caption_column}
        for option, column in unused.items():
            if column is not None:
                raise ValueError(f"{option} is {column!r} but {self.root} holds no {' or '.join(METADATA_NAMES)}")
        self._entries = self._from_files()

    def _entry(self, index: int) -> _Entry:
        self.open()
        entry = self._entries[index]
        if entry.bad:
            raise CorruptRecord(entry.bad)
        return entry

    # ----------------------------------------------------------------------------------------------------- metadata
    def _from_metadata(self, path: Path) -> list[_Entry]:
        rows = read_rows(path)
        columns = columns_of(rows)
        label_column = _choose(self.label_column, default="label", columns=columns, path=path)
        caption_column = _choose(self.caption_column, default="text", columns=columns, path=path)
        name_column = find_column(columns, FILE_NAME, path=path) or FILE_NAME
        self._tell_columns(columns - {label_column, caption_column, name_column}, label_column, caption_column, path)
        entries = [self._from_row(row, caption_column, name_column, path=path) for row in rows]
        often = [name for name, count in Counter(entry.name for entry in entries if not entry.bad).items() if count > 1]
        if often:
            self._notes.append(f"{len(often)} pictures are named by several rows of {path}, such as {often[0]!a}")
        if label_column is not None:
            values = [None if row.bad else row.values.get(label_column) for row in rows]
            where = f"column {label_column!r} of {path}"
            labels = number_labels(values, classes=self._classes, where=where)
            entries = self._labelled(entries, labels, [f"line {row.line} of {path}" for row in rows])
        files = FolderFiles(self.root, refuse_outside=False)
        self._unused, notes = sort_out([*files.names, *files.skipped], [*(entry.name for entry in entries), path.name])
        self._notes += notes
        tops = {top for entry in entries if (top := _top(entry.name)) and not entry.bad}
        if label_column is None and self.class_folders and len(tops) > 1:
            self._notes.append(f"folders such as {min(tops)!r} are no classes, as {path.name} has no column of labels")
        return entries

    def _tell_columns(self, unread: set[str], label: str | None, caption: str | None, path: Path) -> None:
        options = {"label_column": label, "caption_column": caption}
        missing = " or ".join(option for option, column in options.items() if column is None)
        if unread and missing:
            self._notes.append(f"columns {sorted(unread)} of {path} are not read; set {missing} if one is meant by it")

    def _from_row(self, row: Row, caption_column: str | None, name_column: str, *, path: Path) -> _Entry:
        where = f"line {row.line} of {path}"
        name = where
        try:
            if row.values or not row.bad:
                name = self._find_name(row.values.get(name_column))
                self._refuse_outside(self.root / name, named_by=where)
            if row.bad:
                raise BadText(row.bad)
            wanted = caption_column
            caption = None if wanted is None else clean_text(row.values.get(wanted), what=f"column {wanted!r}")
        except BadText as error:
            return _Entry(name, bad=f"{where}: {error}")
        return _Entry(name, caption=caption)

    def _find_name(self, value: object) -> str:
        if not clean_text(value, what="file_name"):
            raise BadText("it has no 'file_name'")
        exact = existing(self.root / str(value))
        found = exact if os.path.lexists(exact) else existing(self.root / str(value).strip())
        return str(value) if found == self.root / str(value) else str(found.relative_to(self.root))

    def _labelled(self, entries: Sequence[_Entry], labels: Labels, where: Sequence[str]) -> list[_Entry]:
        self._classes = labels.classes
        bad = {place: f"{where[place]}: {reason}" for place, reason in labels.bad.items()}
        return [
            replace(entry, label=label, bad=entry.bad or bad.get(place, ""))
            for place, (entry, label) in enumerate(zip(entries, labels.numbers, strict=True))
        ]

    # -------------------------------------------------------------------------------------------------------- files
    def _from_files(self) -> list[_Entry]:
        files = FolderFiles(self.root)
        names = [name for name in files.names if is_image(name)]
        captions = caption_files(self.root, names, files.names)
        read = [path.relative_to(self.root).as_posix() for path in captions if path is not None]
        self._unused, notes = sort_out([*files.names, *files.skipped], [*names, *read])
        self._notes += notes
        entries = [_Entry(name, bad=_bad_name(name)) for name in names]
        if self.class_folders and any(_top(name) for name in names):
            labels = self._folder_labels(names, files)
            entries = self._labelled(entries, labels, [f"picture {name!r}" for name in names])
        refuse_missing(captions, names, root=self.root)
        return [replace(entry, caption=text) for entry, text in zip(entries, captions, strict=True)]

    def _folder_labels(self, names: Sequence[str], files: FolderFiles) -> Labels:
        loose = next((name for name in names if _top(name) is None), None)
        if loose is not None:
            raise ValueError(
                f"{self.root} holds pictures both in class folders and outside them, such as {loose!r}; "
                "move them into a class folder or set class_folders to false"
            )
        folders = [_top(name) for name in names]
        used = {folder for folder in folders if folder is not None}
        self._refuse_lost_classes(used, files)
        labels = number_labels(folders, classes=self._classes, where=str(self.root))
        if labels.classes is None and len(used) > len(set(labels.numbers)):
            raise ValueError(f"{self.root} has folders of one number: {sorted(used)[:20]}; give `classes`")
        return name_numbers(labels)

    def _refuse_lost_classes(self, used: set[str], files: FolderFiles) -> None:
        for folder in sorted(name for name in files.folders if "/" not in name and name not in used):
            held = next((name for name in self._unused if _top(name) == folder), None)
            if self._classes is None or (folder in self._classes and held is not None):
                holds = "holds no picture" if held is None else f"holds {held!r} but no picture that can be read"
                raise ValueError(
                    f"folder {folder!r} of {self.root} {holds}: convert what is in it to PNG or JPEG, "
                    "move the folder away if it is no class, or give `classes` without it"
                )

    def _refuse_outside(self, path: Path, *, named_by: str) -> None:
        if not is_inside(path, self.root):
            inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            raise ValueError(f"{named_by} leads to {str(inside)!r}, outside {self.root}; copy the file into the folder")


def _text(caption: str | Path | None) -> str | None:
    return None if isinstance(caption, Path) else caption


def _top(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def _bad_name(name: str) -> str:
    try:
        check_text(name)
    except BadText as error:
        return f"file name: {error}"
    return ""


def _choose(wanted: str | None, *, default: str, columns: set[str], path: Path) -> str | None:
    if wanted is None or wanted in columns:
        return wanted or find_column(columns, default, path=path)
    raise ValueError(f"{path} has no column {wanted!r}; it has {sorted(columns)}")
