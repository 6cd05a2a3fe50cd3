"""Parquet files on disk."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.sources.decoding import MAX_PIXELS
from datamodules.sources.files import file_stamps
from datamodules.sources.huggingface import HuggingFaceRecords
from datamodules.sources.records import digest
from sparsight.common.disk.inputs import find_files

if TYPE_CHECKING:
    from datasets import Dataset


class ParquetRecords(HuggingFaceRecords):
    """Rows of parquet files, in the order of the files.

    ``datasets`` copies them into its cache in a form that any row can be read from; where there is no room for that,
    use ``HuggingFaceStream``.

    Args:
        files: Path, pattern (``data/*.parquet``, ``data/{00..12}.parquet``), or a list of them.
        image_column: Column of images: their encoded bytes, plain or in a structure with ``bytes`` and ``path``.
        label_column: Column of labels (class labels, whole numbers or names), or ``None``.
        caption_column: Column of captions, or ``None``.
        max_pixels: Images with more pixels are refused.
    """

    def __init__(
        self,
        files: str | list[str],
        image_column: str = "image",
        label_column: str | None = None,
        caption_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(
            path=str(files),
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            max_pixels=max_pixels,
        )
        self.files = files

    def check_paths(self) -> None:
        """See that every path and pattern has files."""
        find_files(self.files, what="files")

    def fingerprint(self) -> str:
        """Covers the options, and name, size and time of change of every file."""
        columns = [self.image_column, self.label_column, self.caption_column]
        return digest([*columns, *file_stamps(find_files(self.files, what="files"))])

    def _load(self) -> Dataset:
        from datasets import load_dataset

        paths = find_files(self.files, what="files")
        try:
            return load_dataset("parquet", data_files=[escape(str(path)) for path in paths], split="train")
        except Exception as error:  # the cause is an error of Arrow, told by one of datasets
            raise ValueError(f"{self.path} cannot be read as parquet: {error.__cause__ or error}") from error

    def _allowed_folders(self) -> list[Path]:
        return []  # images are in the files, a path would lead elsewhere
