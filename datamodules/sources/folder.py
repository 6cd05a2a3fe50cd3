"""A folder of images, with classes from its subfolders and captions from a metadata file or text files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, decode_image, image_size
from datamodules.sources.files import file_stamps
from datamodules.sources.identity import Part
from datamodules.sources.listing.reader import Entry, FolderReader
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.common.disk.inputs import need_folder
from sparsight.common.text import BadText, read_caption


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
        self._entries: list[Entry] = []
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
    def bad(self) -> dict[int, str]:
        """Rows of the metadata that are none or name no picture, and labels that are no class, once it is open."""
        return {position: entry.bad for position, entry in enumerate(self._entries) if entry.bad}

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
        columns = {"label_column": self.label_column, "caption_column": self.caption_column}
        reader = FolderReader(self.root, self._classes, class_folders=self.class_folders, **columns)
        self._entries = reader.read()
        self._classes, self._unused, self._notes = reader.classes, reader.unused, reader.notes

    def _entry(self, index: int) -> Entry:
        self.open()
        entry = self._entries[index]
        if entry.bad:
            raise CorruptRecord(entry.bad)
        return entry


def _text(caption: str | Path | None) -> str | None:
    return None if isinstance(caption, Path) else caption
