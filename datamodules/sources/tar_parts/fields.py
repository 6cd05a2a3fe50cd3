"""Which parts of a record of a tar shard hold image, caption and label, and how they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.sources.decoding import IMAGE_SUFFIXES, decode_image
from datamodules.sources.labels import ClassNumbers, NotALabel, refuse_names
from datamodules.sources.records import CorruptRecord, Record
from datamodules.sources.tar_parts.members import Members, read_parts
from sparsight.common.text import BadText, clean_text, decode_text, parse_json

_LOOKED_AT = 16  # records


@dataclass(frozen=True)
class TarFields:
    """Which parts of a record hold what.

    Args:
        caption: Part with the caption: a suffix such as ``txt``, or ``json.NAME`` for an entry of the json part.
        label: Part with the class, named likewise: its number, or its name where ``classes`` are given.
        classes: Names of the classes in the order of their numbers.
        max_pixels: Images with more pixels are refused.
    """

    caption: str | None
    label: str | None
    classes: list[str] | None
    max_pixels: int

    def decode(self, key: str, parts: Mapping[str, bytes]) -> Record:
        """Decode a record's parts.

        Raises:
            CorruptRecord: A part is missing or cannot be read.
        """
        caption = None if self.caption is None else self.caption_of(parts)
        label = None if self.label is None else self.label_of(parts)
        image = self.image_of(key, parts)
        return Record(id=key, image=image, label=label, caption=caption)

    def image_of(self, key: str, parts: Mapping[str, bytes]) -> Image.Image:
        """The image among a record's parts.

        Raises:
            CorruptRecord: There is none, or it cannot be decoded; the message names the member.
        """
        part = image_part(parts)
        try:
            return decode_image(parts[part], max_pixels=self.max_pixels)
        except CorruptRecord as error:
            raise CorruptRecord(f"member {key}.{part}: {error}") from error

    def caption_of(self, parts: Mapping[str, bytes]) -> str | None:
        """Caption among a record's parts.

        Raises:
            CorruptRecord: It is not there, or no text.
        """
        try:
            return None if self.caption is None else clean_text(_value(self.caption, parts), what=self.caption)
        except BadText as error:
            raise CorruptRecord(str(error)) from error

    def label_of(self, parts: Mapping[str, bytes]) -> int | None:
        """Class number among a record's parts.

        Raises:
            CorruptRecord: It is not there, or neither name nor number of a class.
        """
        try:
            return None if self.label is None else self.number_of(_value(self.label, parts))
        except NotALabel as error:
            raise CorruptRecord(f"part {self.label!r}: {error}") from error

    def check_labels(self, records: Iterable[tuple[Path, Members]]) -> None:
        """Refuse labels that are names without ``classes``, told by the first records of their shards.

        Raises:
            ValueError: They are.
        """
        if self.label is None or self.classes is not None:
            return
        values, path = [], Path()
        for path, members in islice(records, _LOOKED_AT):
            with suppress(CorruptRecord), path.open("rb") as file:
                values.append(_value(self.label, read_parts(file, members)))
        refuse_names(values, where=f"part {self.label!r} of {path}")

    def used(self, parts: Iterable[str]) -> list[str]:
        """Which of a record's parts are read, in the order of their names."""
        wanted = {"json" if name.startswith("json.") else name for name in (self.caption, self.label) if name}
        image = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
        return sorted(part for part in parts if part in wanted or part == image)

    @cached_property
    def number_of(self) -> ClassNumbers:
        """Finds the number of a label."""
        return ClassNumbers(self.classes)


def part_name(name: str | None) -> str | None:
    """The name of a part as members give it: small letters, without the dot before it."""
    plain = None if name is None else name.removeprefix(".")
    return plain if plain is None or plain.startswith("json.") else plain.lower()


def image_part(parts: Mapping[str, bytes]) -> str:
    """Which part of a record is its image.

    Raises:
        CorruptRecord: None is.
    """
    found = next((part for part in parts if f".{part}" in IMAGE_SUFFIXES), None)
    if found is None:
        raise CorruptRecord(f"no picture among its parts {sorted(parts)}")
    return found


def _value(wanted: str, parts: Mapping[str, bytes]) -> Any:
    part, _, entry = wanted.partition(".") if wanted.startswith("json.") else (wanted, "", "")
    if part not in parts:
        raise CorruptRecord(f"no part {part!r} among its parts {sorted(parts)}")
    try:
        text = decode_text(parts[part])
        return parse_json(text)[entry] if entry else text
    except (BadText, KeyError, TypeError) as error:
        raise CorruptRecord(f"part {wanted!r}: {type(error).__name__}: {error}") from error
