"""Small sources of records, and what tests ask about the samples that are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch.utils.data import Dataset

from datamodules import (
    Conversation,
    CorruptRecord,
    Record,
    RecordSource,
    Turn,
)
from datamodules.evaluation.tasks.reformulated import ReformulatedTask
from sparsight.evaluation.reform_eval.sample import Sample

COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 180, 20),
    "blue": (20, 20, 230),
    "yellow": (250, 220, 20),
    "purple": (140, 40, 180),
    "black": (5, 5, 5),
}
NAMES = [f"{name} thing" for name in COLOURS]


class Squares(RecordSource):
    """Opaque squares of one colour, named by it; records in ``corrupt`` cannot be read."""

    def __init__(self, total: int = 60, *, named_by: str = "label", corrupt: tuple[int, ...] = ()) -> None:
        self.total = total
        self.named_by = named_by
        self.corrupt = corrupt

    def _open(self) -> None:
        return

    @property
    def classes(self) -> list[str] | None:
        return NAMES if self.named_by == "label" else None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        if index in self.corrupt:
            raise CorruptRecord("torn")
        number = index % len(NAMES)
        image = Image.new("RGB", (6, 6), COLOURS[NAMES[number].split()[0]])
        label = number if self.named_by == "label" else None
        return Record(f"r{index}", image, label, NAMES[number] if self.named_by == "caption" else None)


class Pictures(RecordSource):
    """Any records."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def _open(self) -> None:
        return

    @property
    def classes(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def fingerprint(self) -> str:
        return str(self.records)


def captioned(*captions: str | None) -> Pictures:
    return Pictures([Record(f"c{n}", Image.new("RGB", (4, 4)), caption=text) for n, text in enumerate(captions)])


def asked(question: str, answer: str, **evaluation: Any) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)), **evaluation)


def talks(*conversations: Conversation) -> Pictures:
    return Pictures([Record(f"t{n}", None, conversation=talk) for n, talk in enumerate(conversations)])


BASIC: dict[str, Any] = {"name": "some", "dimension": "coarse_perception"}


def samples(task: ReformulatedTask) -> list[Sample]:
    return [task[index] for index in range(len(task))]


def plainly(sample: Sample) -> tuple[Any, ...]:
    """A sample as values that can be compared."""
    pictures = [(image.mode, image.size, image.tobytes()) for image in sample.images]
    return sample.id, sample.questions, pictures, sample.options, sample.answer, sample.references, sample.history


def right(sample: Sample) -> str:
    assert sample.answer is not None
    return sample.options[sample.answer]


def is_uniform(counts: Counter[int], places: int) -> bool:
    """Pearson's test at a level of 0.1 percent, for 2 to 8 places."""
    critical = {2: 10.83, 3: 13.82, 4: 16.27, 8: 24.32}[places]
    mean = sum(counts.values()) / places
    return sum((counts[place] - mean) ** 2 / mean for place in range(places)) < critical


def two_coloured() -> Pictures:
    image = Image.new("RGB", (10, 10), COLOURS["red"])
    image.paste(COLOURS["blue"], (0, 0, 5, 10))
    return Pictures([Record("both", image)])


class MemoryRecords(RecordSource):
    """Small images whose pixels tell their number; those in ``corrupt`` cannot be read."""

    def __init__(self, total: int, *, corrupt: tuple[int, ...] = (), classes: list[str] | None = None) -> None:
        self.total = total
        self.corrupt = corrupt
        self._classes = classes

    def _open(self) -> None:
        return

    @property
    def classes(self) -> list[str] | None:
        return self._classes

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        if index in self.corrupt:
            raise CorruptRecord("torn")
        pixels = np.array([[index, 0], [index, 0]], dtype=np.uint8)
        return Record(id=str(index), image=Image.fromarray(pixels), label=index % 3, caption=f"picture {index}")


def indices(loader: Any) -> list[int]:
    """All record positions that a loader delivers."""
    return [index for batch in loader for index in batch["index"].tolist()]


class SaveEverywhere(Callback):
    """Writes a checkpoint wherever Lightning offers to, named by the length of the module's list ``seen``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: Trainer, place: str) -> None:
        watcher: Any = trainer.model
        trainer.save_checkpoint(self.folder / f"{len(watcher.seen):03d}-{place}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, "epoch")


class Numbers(Dataset):
    """0, 1, 2, ..."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> int:
        return index
