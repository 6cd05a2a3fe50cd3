"""Conversations about images in files of LLaVA's format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, decode_image
from datamodules.sources.files import file_stamps, is_inside
from datamodules.sources.identity import Part
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.common.disk.inputs import existing, need_file, need_folder
from sparsight.common.text import BadText, check_text, each_once, parse_json, read_lines, read_text
from sparsight.lvlm.chat.conversation import Conversation, Role, Turn

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")
EVALUATION_FIELDS = ("candidates", "answer", "task")
LOOKED_AT = 100  # entries whose images are looked for when a file is opened
_FIELDS = {"image", "images", "conversations", *EVALUATION_FIELDS}


class ConversationRecords(RecordSource):
    """Conversations of a file in LLaVA's format, with images from a folder.

    The file is a JSON list, or JSONL with one object a line, of ``{"id": ..., "image": "a.jpg" or a list of such or
    absent, "conversations": [{"from": "human", "value": "<image> What is it?"}, {"from": "gpt", "value": ...}]}``.
    Speakers are ``human`` or ``user``, ``gpt`` or ``assistant``, and ``system``; an answer may have ``reasoning``,
    what was thought before it. ``candidates`` (texts), ``answer`` (the number or text of the right one) and ``task`` (a
    name) make an entry an item of an evaluation.

    Args:
        file: JSON or JSONL file.
        images: Folder of the images; nothing outside it is read.
        max_pixels: Images with more pixels are refused.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.file = Path(file)
        self.images = None if images is None else Path(images)
        self.max_pixels = check_max_pixels(max_pixels)
        self._entries: list[str] = []  # still encoded, which takes a fraction of the memory
        self._places: list[int] = []  # number of the line, or of the entry

    def check_paths(self) -> None:
        """See that file and folder are there."""
        need_file(self.file, what="file", holds="conversations, JSON or JSONL")
        if self.images is not None:
            need_folder(self.images, what="images", holds="pictures")

    def _open(self) -> None:
        self.check_paths()
        if self._is_lines:
            lines = list(read_lines(self.file))
        else:
            lines = list(enumerate(_encoded_entries(read_text(self.file), file=self.file)))
        self._places, self._entries = [number for number, _ in lines], [line for _, line in lines]
        self._check_images()

    def _check_images(self) -> None:
        """Refuse a folder that holds none of the first images; single ones are told when they are read.

        Raises:
            FileNotFoundError: It holds none.
        """
        folder, names = self.images, {name for name in _names(self._entries[:LOOKED_AT]) if name.strip()}
        if folder is not None and names and not any(os.path.isfile(existing(folder / name)) for name in names):
            raise FileNotFoundError(
                f"images: {self.images} has none of the images that the first conversations of {self.file.name} name, "
                f"such as {min(names)}: give the folder that these names start from"
            )

    @property
    def classes(self) -> None:
        """There are none."""
        return None

    def __len__(self) -> int:
        """Number of conversations, usable ones or not."""
        self.open()
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        """Parse a conversation and decode its images."""
        try:
            entry = self._entry(index)
            images = tuple(self._image(name) for name in _image_names(entry))
            conversation = make_conversation(entry, _turns(entry), images)
        except ValueError as error:  # a corrupt image, too, is one
            raise CorruptRecord(f"{self.where(index)}: {error}") from error
        return Record(id=self.where(index), image=images[0] if images else None, conversation=conversation)

    def extent(self, index: int) -> tuple[int, int]:
        """Number of images and of characters, from the text alone."""
        try:
            entry = self._entry(index)
            return len(_image_names(entry)), sum(len(turn.text) for turn in _turns(entry))
        except ValueError as error:
            raise CorruptRecord(f"{self.where(index)}: {error}") from error

    def fingerprint(self) -> str:
        """Covers every conversation, and name, size and time of change of every image."""
        self.open()
        return digest([*self._entries, *file_stamps(filter(os.path.isfile, self._images()))])

    def content(self) -> Iterator[object]:
        """Every conversation, and the images."""
        self.open()
        yield from self._entries
        for path in self._images():
            yield Part.of_file(existing(path), name=path.name)

    def where(self, index: int) -> str:
        """File and line or entry; also the id, as entries of usual files share theirs."""
        self.open()
        return f"{self.file.name} {'line' if self._is_lines else 'entry'} {self._places[index]}"

    def _images(self) -> list[Path]:
        names = _names(self._entries)
        return [] if self.images is None else [self.images / name for name in sorted(names)]

    @property
    def _is_lines(self) -> bool:
        return self.file.suffix.lower() in (".jsonl", ".ndjson")

    def _entry(self, index: int) -> dict[str, Any]:
        self.open()
        return _parsed(self._entries[index])

    def _image(self, name: str) -> Image.Image:
        if self.images is None:
            raise ValueError(f"it names image {name!r}, but no folder `images` is given")
        check_text(name)
        path = existing(self.images / name)
        if not is_inside(path, self.images):
            raise ValueError(f"image {name!r} lies outside {self.images}; copy it into the folder")
        try:
            return decode_image(path, max_pixels=self.max_pixels)
        except CorruptRecord as error:
            raise ValueError(f"image {name!r}: {error}") from error


def _parsed(encoded: str) -> dict[str, Any]:
    entry = parse_json(encoded)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    for name in entry:
        if name not in _FIELDS and name.strip().casefold() in _FIELDS:
            raise ValueError(f"{name!r} is not read: name it {name.strip().casefold()!r}")
    return entry


def _names(entries: Iterable[str]) -> set[str]:
    """Images that some entries name."""
    names: set[str] = set()
    for encoded in entries:
        with suppress(ValueError):  # what is wrong is said when the entry is read
            names |= set(_image_names(_parsed(encoded)))
    return names


def _encoded_entries(text: str, *, file: Path) -> Iterator[str]:
    try:
        entries = json.loads(text, object_pairs_hook=each_once)  # a number that is none spoils its own entry only
    except BadText as error:
        raise ValueError(f"{file}: {error}") from error
    except (RecursionError, ValueError) as error:
        reason = str(error) or "nested too deeply"
        raise ValueError(f"{file} is not JSON: {reason}; name it .jsonl if it holds one object a line") from error
    if not isinstance(entries, list):
        raise ValueError(f"{file} holds no list of conversations; name it .jsonl if it holds one object a line")
    yield from (json.dumps(entry) for entry in entries)


def _image_names(entry: Mapping[str, Any]) -> list[str]:
    found = entry.get("image", entry.get("images"))
    names = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`image` is {found!r}, neither a file name nor a list of such")
    return names


def _turns(entry: Mapping[str, Any]) -> tuple[Turn, ...]:
    said = entry.get("conversations")
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError("`conversations` is no list of turns")
    return tuple(read_turn(turn.get("from"), turn.get("value"), reasoning=read_reasoning(turn)) for turn in said)


def read_reasoning(turn: Mapping[str, Any]) -> Any:
    """What a file says that was thought before a turn, under one of the usual names; none if it says nothing."""
    return next((found for name in REASONING_FIELDS if (found := turn.get(name)) is not None), None)


def read_turn(role: Any, text: Any, *, reasoning: Any = None) -> Turn:
    """A turn of a file.

    Args:
        role: Who speaks.
        text: What is said.
        reasoning: What is thought before that, if anything.

    Raises:
        ValueError: The role is unknown, or a text is none.
    """
    if not isinstance(role, str) or role not in ROLES:
        told = (
            "a turn has no speaker: name it `from`, and what is said `value`"
            if role is None
            else f"unknown role {role!r}"
        )
        raise ValueError(f"{told}; known: {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise ValueError(f"a turn of {role!r} holds {repr(text)[:80]}, not a text")
    if not isinstance(reasoning, str | None):
        raise ValueError(f"a turn of {role!r} holds the reasoning {repr(reasoning)[:80]}, not a text")
    return Turn(ROLES[role], text.removeprefix("\ufeff"), reasoning=reasoning or "")


def make_conversation(
    entry: Mapping[str, Any], turns: tuple[Turn, ...], images: tuple[Image.Image, ...]
) -> Conversation:
    """A conversation with what an entry says about its evaluation.

    Raises:
        ValueError: What it says is of another kind, or does not fit the conversation.
    """
    candidates, answer, task = (entry.get(name) for name in EVALUATION_FIELDS)
    candidates, task = candidates or [], task or ""
    if not isinstance(candidates, list) or not all(isinstance(text, str) for text in candidates):
        raise ValueError(f"`candidates` is {candidates!r}, not a list of texts")
    if not isinstance(task, str):
        raise ValueError(f"`task` is {task!r}, not a name")
    if not candidates:
        return Conversation(turns, images, task=task)
    if isinstance(answer, str):
        if answer not in candidates:
            raise ValueError(f"`answer` is {answer!r}, which is not among `candidates`: {candidates}")
        answer = candidates.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise ValueError(f"`answer` is {answer!r}, neither the number nor the text of a candidate")
    return Conversation(turns, images, tuple(candidates), answer, task)
