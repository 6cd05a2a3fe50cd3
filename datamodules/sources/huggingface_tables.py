"""Tables as the package ``datasets`` reads them: no word of them is lost, and columns hold what they should."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from datamodules.sources.listing.metadata import Row, read_rows

_TEXTS = ("string", "large_string", "string_view")
_LOST = {  # cells that pandas, with which datasets reads tables, takes for missing
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
_LABELS = ("bool", "float", "int", "uint", *_TEXTS)  # beginnings of names of types


def load_rows(path: str, name: str | None, *, revision: str | None, files: list[str] | None = None, **more: Any) -> Any:
    """``datasets.load_dataset``, but that in CSV files only a blank cell is missing: ``NA`` and ``null`` may be names.

    Args:
        path: Hub id, folder, or kind of file.
        name: Configuration of a data set that has several.
        revision: Branch, tag or commit of a hub data set.
        files: Files of that kind.
        more: What else ``load_dataset`` takes, such as ``split``.
    """
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules.csv.csv import CsvConfig

    where: dict[str, Any] = {"data_files": files, "revision": revision}
    if isinstance(load_dataset_builder(path, name, **where).config, CsvConfig):
        more |= {"keep_default_na": False, "na_values": [""]}
    return load_dataset(path, name, **where, **more)


def check_words_are_kept(folder: Path, columns: list[str]) -> None:
    """Refuse words that ``datasets`` takes for missing in the tables beside images, where it has no option for it.

    Raises:
        ValueError: A table holds one in these columns.
    """
    for table in sorted(folder.rglob("metadata.csv")) if folder.is_dir() else ():
        rows: list[Row] = []
        with suppress(ValueError):  # what reads less strictly may still read it
            rows = read_rows(table)
        for row in rows:
            for column in columns:
                if row.values.get(column) in _LOST:
                    raise ValueError(
                        f"{table}: column {column!r} holds {row.values[column]!r} in line {row.line}, which datasets "
                        "reads as missing: use FolderRecords, or write metadata.jsonl"
                    )


class Columns(Protocol):
    """A source or stream with columns."""

    path: str
    image_column: str
    label_column: str | None
    caption_column: str | None


def check_columns(features: Mapping[str, Any], source: Columns) -> None:
    """See that the columns are there, and hold what they should.

    Args:
        features: Kinds of the columns that there are; where none are declared, the values of a row.
        source: Names the columns that are wanted.

    Raises:
        ValueError: One is missing, or all of its values would be bad.
    """
    from datasets import ClassLabel, Image, Value

    wanted = {
        "image_column": source.image_column,
        "label_column": source.label_column,
        "caption_column": source.caption_column,
    }
    for option, column in wanted.items():
        if column is None:
            continue
        if column not in features:
            raise ValueError(
                f"{option} is {column!r}, which data set {source.path!r} does not have; it has {list(features)}"
            )
        kind = features[column]
        value = kind.dtype if isinstance(kind, Value) else ""
        encoded = isinstance(kind, dict) and set(kind) == {"bytes", "path"}
        where = f"column {column!r} of {source.path!r} holds {kind}"
        if option == "image_column" and not isinstance(kind, Image) and value != "binary" and not encoded:
            raise ValueError(f"{where}, not pictures")
        if option == "caption_column" and value not in _TEXTS:
            raise ValueError(f"{where}, not one text a row")
        if option == "label_column" and not isinstance(kind, ClassLabel) and not value.startswith(_LABELS):
            raise ValueError(f"{where}, not one label a row: class labels, whole numbers, names, true and false")


def is_image_type(kind: Any) -> bool:
    """Whether a type of Arrow is that of encoded images."""
    return {kind.field(number).name for number in range(kind.num_fields)} == {"bytes", "path"}
