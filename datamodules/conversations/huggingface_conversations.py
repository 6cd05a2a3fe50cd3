"""Hugging Face data sets of chat messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datamodules.conversations.llava import EVALUATION_FIELDS, make_conversation, read_reasoning, read_turn
from datamodules.sources.decoding import MAX_PIXELS, decode_image
from datamodules.sources.huggingface import HuggingFaceRecords
from datamodules.sources.records import CorruptRecord, Record
from sparsight.lvlm.chat.conversation import IMAGE, Turn

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceConversations(HuggingFaceRecords):
    """Rows of a Hugging Face data set with a list of chat messages and, where there are any, a list of images.

    A message is ``{"role": "user", "content": ...}``, the content a text in which ``<image>`` stands for the next
    image, or a list of parts ``{"type": "text", "text": ...}`` and ``{"type": "image"}``. Columns ``candidates``,
    ``answer`` and ``task`` make rows items of an evaluation, as in ``ConversationRecords``.

    Args:
        path: Hub id, folder written by ``save_to_disk``, or folder that ``datasets.load_dataset`` understands.
        name: Configuration of a data set that has several.
        split: Split, such as ``train``; hub data sets also take slices such as ``train[:10%]``.
        revision: Branch, tag or commit of a hub data set; give a commit for a run that can be repeated.
        messages_column: Column of messages.
        images_column: Column of images (one or a list a row), or ``None`` for texts alone.
        max_pixels: Images with more pixels are refused.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        messages_column: str = "messages",
        images_column: str | None = "images",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(path, name, split, revision, image_column=images_column or "", max_pixels=max_pixels)
        self.messages_column = messages_column
        self.images_column = images_column
        self._texts: Dataset | None = None

    def __getitem__(self, index: int) -> Record:
        """Read the messages of a row and decode its images."""
        row = self._row(index)
        found = None if self.images_column is None else row[self.images_column]
        try:
            if not isinstance(found, (list, dict, type(None))):
                raise ValueError(f"column {self.images_column!r} holds no pictures")
            encoded = [self._image(value) for value in (found if isinstance(found, list) else [found]) if value]
            images = tuple(decode_image(each, max_pixels=self.max_pixels) for each in encoded)
            conversation = make_conversation(row, self._turns(row), images)
        except ValueError as error:  # a corrupt image, too, is one
            raise CorruptRecord(f"row {index} of {self.path}: {error}") from error
        return Record(id=f"row {index} of {self.path}", image=next(iter(images), None), conversation=conversation)

    def extent(self, index: int) -> tuple[int, int]:
        """Number of images and of characters, from the messages alone."""
        try:
            texts = [turn.text for turn in self._turns(self._row(index, self._texts))]
        except ValueError as error:
            raise CorruptRecord(f"row {index} of {self.path}: {error}") from error
        return sum(text.count(IMAGE) for text in texts), sum(map(len, texts))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the first image."""
        image = self[index].needed_image
        return image.height, image.width

    def label_of(self, index: int) -> None:
        """There are none."""
        return None

    def _open(self) -> None:
        from datasets import Image, List

        rows = self._load()
        columns = [column for column in (self.messages_column, self.images_column) if column is not None]
        for column in columns:
            if column not in rows.column_names:
                raise ValueError(f"data set {self.path!r} has no column {column!r}; it has {rows.column_names}")
        rows = rows.select_columns(columns + [name for name in EVALUATION_FIELDS if name in rows.column_names])
        self._texts = rows.select_columns([self.messages_column])
        if self.images_column is not None:
            # left encoded, so that a damaged image is found, and skipped, when its row is read
            encoded = Image(decode=False)
            single = isinstance(rows.features[self.images_column], Image)
            rows = rows.cast_column(self.images_column, encoded if single else List(encoded))
        self._rows = rows

    def _turns(self, row: dict[str, Any]) -> tuple[Turn, ...]:
        messages = row[self.messages_column]
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"column {self.messages_column!r} holds no messages")
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"column {self.messages_column!r} holds messages without a role")
        return tuple(
            read_turn(message.get("role"), _text(message.get("content")), reasoning=read_reasoning(message))
            for message in messages
        )


def _text(content: Any) -> Any:
    """Content of a message as one text; parts that are images are written as places for them."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in ("text", "image"):
            raise ValueError(f"a message has a part of type {str(kind)[:40]!r}; known: text, image")
        text = part.get("text") or ""
        if not isinstance(text, str):
            raise ValueError(f"a message holds {repr(text)[:80]}, not a text")
        texts.append(IMAGE if kind == "image" else text)
    return "".join(texts)
