"""What a folder of images holds: its records with their classes and captions, and what is none; no image is decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.sources.files import FolderFiles, is_inside
from datamodules.sources.labels import Labels, name_numbers, number_labels
from datamodules.sources.listing.beside import caption_files, is_image, refuse_missing, sort_out
from datamodules.sources.listing.metadata import (
    FILE_NAME,
    METADATA_NAMES,
    Row,
    columns_of,
    find_column,
    find_metadata,
    read_rows,
)
from sparsight.common.disk.inputs import existing
from sparsight.common.text import BadText, check_text, clean_text


@dataclass(frozen=True)
class Entry:
    """One image of a folder.

    Args:
        name: Its path inside the folder, or its place in the metadata where there is none.
        label: Number of its class.
        caption: Its text, or the path of the text file.
        bad: Why it cannot be used; empty if it can.
    """

    name: str
    label: int | None = None
    caption: str | Path | None = None
    bad: str = ""


class FolderReader:
    """Lists a folder by its metadata, or else by its files.

    Args:
        root: The folder.
        classes: Names of the classes, if they are given.
        class_folders: Take the first subfolder as class.
        label_column: Metadata column of labels, if one is named.
        caption_column: Metadata column of captions, if one is named.

    Attributes:
        classes: Names of the classes, given or found.
        unused: Files that are neither a record nor go with one.
        notes: What is to be told of columns and files that are not read.
    """

    def __init__(
        self,
        root: Path,
        classes: list[str] | None,
        *,
        class_folders: bool,
        label_column: str | None,
        caption_column: str | None,
    ) -> None:
        self.root, self.class_folders = root, class_folders
        self.label_column, self.caption_column = label_column, caption_column
        self.classes = classes
        self.unused: list[str] = []
        self.notes: list[str] = []

    def read(self) -> list[Entry]:
        """The images, in the order of the metadata's rows or of their names.

        Raises:
            ValueError: An option names what is not there, files are named that lie outside, or classes, labels and
                captions cannot be told; the message names the file.
        """
        metadata = find_metadata(self.root)
        if metadata is not None:
            self._refuse_outside(metadata, named_by=f"a link in {self.root}")
            return self._from_metadata(metadata)
        unused = {"label_column": self.label_column, "caption_column": self.caption_column}
        for option, column in unused.items():
            if column is not None:
                raise ValueError(f"{option} is {column!r} but {self.root} holds no {' or '.join(METADATA_NAMES)}")
        return self._from_files()

    def _from_metadata(self, path: Path) -> list[Entry]:
        rows = read_rows(path)
        columns = columns_of(rows)
        label_column = _choose(self.label_column, default="label", columns=columns, path=path)
        caption_column = _choose(self.caption_column, default="text", columns=columns, path=path)
        name_column = find_column(columns, FILE_NAME, path=path) or FILE_NAME
        self._tell_columns(columns - {label_column, caption_column, name_column}, label_column, caption_column, path)
        entries = [self._from_row(row, caption_column, name_column, path=path) for row in rows]
        often = [name for name, count in Counter(entry.name for entry in entries if not entry.bad).items() if count > 1]
        if often:
            self.notes.append(f"{len(often)} pictures are named by several rows of {path}, such as {often[0]!a}")
        if label_column is not None:
            values = [None if row.bad else row.values.get(label_column) for row in rows]
            where = f"column {label_column!r} of {path}"
            labels = number_labels(values, classes=self.classes, where=where)
            entries = self._labelled(entries, labels, [f"line {row.line} of {path}" for row in rows])
        files = FolderFiles(self.root, refuse_outside=False)
        entries = self._without_missing(entries, files, [f"line {row.line} of {path}" for row in rows])
        self.unused, notes = sort_out([*files.names, *files.skipped], [*(entry.name for entry in entries), path.name])
        self.notes += notes
        tops = {top for entry in entries if (top := _top(entry.name)) and not entry.bad}
        if label_column is None and self.class_folders and len(tops) > 1:
            self.notes.append(f"folders such as {min(tops)!r} are no classes, as {path.name} has no column of labels")
        return entries

    def _without_missing(self, entries: Sequence[Entry], files: FolderFiles, where: Sequence[str]) -> list[Entry]:
        """Mark those whose picture is not there."""
        there = set(files.names)
        return [
            entry
            if entry.bad or entry.name in there or os.path.isfile(self.root / entry.name)
            else replace(entry, bad=f"{place}: it names {entry.name!r}, which is not there")
            for entry, place in zip(entries, where, strict=True)
        ]

    def _tell_columns(self, unread: set[str], label: str | None, caption: str | None, path: Path) -> None:
        options = {"label_column": label, "caption_column": caption}
        missing = " or ".join(option for option, column in options.items() if column is None)
        if unread and missing:
            self.notes.append(f"columns {sorted(unread)} of {path} are not read; set {missing} if one is meant by it")

    def _from_row(self, row: Row, caption_column: str | None, name_column: str, *, path: Path) -> Entry:
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
            return Entry(name, bad=f"{where}: {error}")
        return Entry(name, caption=caption)

    def _find_name(self, value: object) -> str:
        if not clean_text(value, what="file_name"):
            raise BadText("it has no 'file_name'")
        exact = existing(self.root / str(value))
        found = exact if os.path.lexists(exact) else existing(self.root / str(value).strip())
        return str(value) if found == self.root / str(value) else str(found.relative_to(self.root))

    def _labelled(self, entries: Sequence[Entry], labels: Labels, where: Sequence[str]) -> list[Entry]:
        self.classes = labels.classes
        bad = {place: f"{where[place]}: {reason}" for place, reason in labels.bad.items()}
        return [
            replace(entry, label=label, bad=entry.bad or bad.get(place, ""))
            for place, (entry, label) in enumerate(zip(entries, labels.numbers, strict=True))
        ]

    def _from_files(self) -> list[Entry]:
        files = FolderFiles(self.root)
        names = [name for name in files.names if is_image(name)]
        captions = caption_files(self.root, names, files.names)
        read = [path.relative_to(self.root).as_posix() for path in captions if path is not None]
        self.unused, notes = sort_out([*files.names, *files.skipped], [*names, *read])
        self.notes += notes
        entries = [Entry(name, bad=_bad_name(name)) for name in names]
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
        labels = number_labels(folders, classes=self.classes, where=str(self.root))
        if labels.classes is None and len(used) > len(set(labels.numbers)):
            raise ValueError(f"{self.root} has folders of one number: {sorted(used)[:20]}; give `classes`")
        return name_numbers(labels)

    def _refuse_lost_classes(self, used: set[str], files: FolderFiles) -> None:
        for folder in sorted(name for name in files.folders if "/" not in name and name not in used):
            held = next((name for name in self.unused if _top(name) == folder), None)
            if self.classes is None or (folder in self.classes and held is not None):
                holds = "holds no picture" if held is None else f"holds {held!r} but no picture that can be read"
                raise ValueError(
                    f"folder {folder!r} of {self.root} {holds}: convert what is in it to PNG or JPEG, "
                    "move the folder away if it is no class, or give `classes` without it"
                )

    def _refuse_outside(self, path: Path, *, named_by: str) -> None:
        if not is_inside(path, self.root):
            inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            raise ValueError(f"{named_by} leads to {str(inside)!r}, outside {self.root}; copy the file into the folder")


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
