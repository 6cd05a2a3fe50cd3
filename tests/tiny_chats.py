"""Small conversations, with images and without."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from datamodules import Conversation, CorruptRecord, InstructionDataModule, Record, RecordSource, Turn

KINDS = ["bag", "coat", "shoe"]


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def dialogue(*said: str, images: tuple[Image.Image, ...] = (), **facts: Any) -> Conversation:
    """User and assistant in turns."""
    roles = ("user", "assistant")
    return Conversation(tuple(Turn(roles[n % 2], text) for n, text in enumerate(said)), images, **facts)  # type: ignore[arg-type]


ITEM = dialogue(
    "<image>\nWhat is it?", "coat", images=(picture(40, 20),), candidates=("bag", "coat", "a long one"), answer=1
)

HUMAN, GPT = "human", "gpt"


def entry(*said: str, **facts: Any) -> dict[str, Any]:
    """An entry of a LLaVA-format file."""
    speakers = (HUMAN, GPT)
    return {"id": "x", "conversations": [{"from": speakers[n % 2], "value": t} for n, t in enumerate(said)], **facts}


class Talks(RecordSource):
    """Conversations of many lengths, every third of them without an image."""

    def __init__(self, total: int, *, broken: tuple[int, ...] = (), items: bool = False) -> None:
        self.total = total
        self.broken = broken
        self.items = items

    def _open(self) -> None:
        return

    @property
    def classes(self) -> None:
        return None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise CorruptRecord("torn")
        images = (picture(20, 10 + index),) if index % 3 else ()
        text = ("<image>\n" if images else "") + f"What is number {index}?" + " Really?" * (index * 7 % 11)
        turns = (Turn("user", text), Turn("assistant", KINDS[index % 3]))
        facts: dict[str, Any] = {"candidates": tuple(KINDS), "answer": index % 3, "task": f"by_{index % 2}"}
        conversation = Conversation(turns, images, **facts if self.items else {})
        return Record(f"talk {index}", next(iter(images), None), conversation=conversation)


def talk_data(
    model: str, source: RecordSource | None = None, *, stage: str = "fit", **options: Any
) -> InstructionDataModule:
    """Datamodule over talks, set up."""
    datamodule = InstructionDataModule(model, Talks(22) if source is None else source, **{"batch_size": 4, **options})
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule
