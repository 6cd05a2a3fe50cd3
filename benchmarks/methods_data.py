"""Sheets of the methods study: white pictures with one or four things in their corners, and questions about them.

Things are ten kinds of clothes (Fashion-MNIST) and twelve emoji. Two of the tasks are naming what is alone on a sheet;
three need the place of a thing, too, which nothing has taught the model before it is tuned.
Items and training share no image of clothes; of an emoji there is one image, so what is new in an item is the sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from benchmarks.region_data import CLASSES, FILES
from datamodules import EmojiRecords, IdxRecords
from datamodules.evaluation.tasks import canvas
from datamodules.sampler import derive_seed
from datamodules.sources.records import Record, RecordSource, digest
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn

Task = Literal["clothes", "emoji", "place", "what", "where"]
TASKS: tuple[Task, ...] = get_args(Task)
NAMING_TASKS: tuple[Task, ...] = ("clothes", "emoji")
EMOJI = ("cat", "dog", "fish", "owl", "banana", "carrot", "guitar", "rocket", "bicycle", "umbrella", "volcano", "bus")
NAMES = (*CLASSES, *EMOJI)
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
CHANCE: dict[str, float] = {"clothes": 1 / 10, "emoji": 1 / 12, "place": 1 / 4, "what": 1 / 4, "where": 1 / 4}
SIZE = 512  # pixels of a sheet: 16 x 16 image tokens
SIDE = 208  # pixels of a thing: 6.5 tokens, the scale that the tower was trained with
NAMING, WHERE, WHAT = "What does the picture show?", "Where is the {name}?", "What is at the {place}?"


class Placed(NamedTuple):
    """A thing in a corner."""

    name: str
    place: str


class Sheets(RecordSource):
    """Sheets with their questions; what is at a position depends on the options and the position alone.

    Args:
        count: How many there are.
        seed: Decides things and places.
        train: Take training's clothes and ask several questions about each sheet, none of which gives another's
            answer away; otherwise test's, and one question with its candidates, the tasks in turn.
        tasks: Of items.
    """

    def __init__(self, count: int, seed: int = 0, train: bool = False, tasks: Sequence[Task] = TASKS) -> None:
        self.count, self.seed, self.train, self.tasks = count, seed, train, list(tasks)
        part = "train" if train else "t10k"
        images, labels = (f"{FILES}{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        self._clothes = IdxRecords(images, labels, classes=CLASSES)
        self._emoji = EmojiRecords()
        self._of_class: list[np.ndarray] = []
        self._of_name: dict[str, int] = {}

    @property
    def classes(self) -> None:
        """There are none."""
        return None

    def check_paths(self) -> None:
        """See that the idx files and the font are there."""
        self._clothes.check_paths()
        self._emoji.check_paths()

    def _open(self) -> None:
        self._clothes.open()
        self._emoji.open()
        labels = np.array([self._clothes.label_of(index) for index in range(len(self._clothes))])
        self._of_class = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
        captions = {self._emoji.caption_of(index): index for index in range(len(self._emoji))}
        self._of_name = {name: captions[name] for name in EMOJI}

    def __len__(self) -> int:
        """Number of sheets."""
        return self.count

    def __getitem__(self, index: int) -> Record:
        """A sheet with its conversation."""
        self.open()
        rng = np.random.default_rng(derive_seed(self.seed, index))
        task = None if self.train else self.tasks[index % len(self.tasks)]
        alone = rng.random() < 0.5 if task is None else task in ("clothes", "emoji", "place")
        kinds = {"clothes": CLASSES, "emoji": EMOJI}.get(task or "", NAMES)
        names = [str(name) for name in rng.choice(list(kinds), 1 if alone else 4, replace=False)]
        places = [str(place) for place in rng.permutation(list(CORNERS))]
        things = [Placed(name, place) for name, place in zip(names, places, strict=False)]
        image = self._composed(things, rng)
        talk = _lesson(image, things, rng) if task is None else _item(image, things, task)
        return Record(f"sheet {index}", image, conversation=talk)

    def fingerprint(self) -> str:
        """Covers the options and both sources."""
        options = [self.count, self.seed, self.train, self.tasks]
        return digest([*options, self._clothes.fingerprint(), self._emoji.fingerprint()])

    def content(self) -> Iterator[object]:
        """As the fingerprint."""
        yield self.fingerprint()

    def _composed(self, things: list[Placed], rng: np.random.Generator) -> Image.Image:
        free = SIZE - SIDE - 2 * canvas.GAP
        placed = []
        for thing in things:
            x, y = CORNERS[thing.place]
            placed.append((self._image_of(thing.name, rng), (canvas.GAP + free * x, canvas.GAP + free * y)))
        return canvas.composed(placed, size=SIZE, side=SIDE)

    def _image_of(self, name: str, rng: np.random.Generator) -> Image.Image:
        if name in self._of_name:
            return self._emoji[self._of_name[name]].needed_image
        return self._clothes[int(rng.choice(self._of_class[CLASSES.index(name)]))].needed_image


def _turns(*asked: tuple[str, str]) -> tuple[Turn, ...]:
    """Questions and answers, the sheet before the first."""
    turns: list[Turn] = []
    for question, answer in asked:
        turns += [Turn("user", question if turns else IMAGE + question), Turn("assistant", answer)]
    return tuple(turns)


def _lesson(image: Image.Image, things: list[Placed], rng: np.random.Generator) -> Conversation:
    """One question about each thing, where it is or what is there; both about one that is alone."""
    if len(things) == 1:
        (only,) = things
        return Conversation(_turns((NAMING, only.name), (WHERE.format(name=only.name), only.place)), (image,))
    pairs = []
    for thing in (things[number] for number in rng.permutation(len(things))):
        named = rng.random() < 0.5
        question = WHERE.format(name=thing.name) if named else WHAT.format(place=thing.place)
        pairs.append((question, thing.place if named else thing.name))
    return Conversation(_turns(*pairs), (image,))


def _item(image: Image.Image, things: list[Placed], task: Task) -> Conversation:
    """One question of a task, about the first thing."""
    first = things[0]
    if task in ("place", "where"):
        question, candidates, answer = WHERE.format(name=first.name), tuple(CORNERS), first.place
    elif task == "what":
        question, candidates, answer = WHAT.format(place=first.place), tuple(sorted(t.name for t in things)), first.name
    else:
        question, candidates, answer = NAMING, tuple(CLASSES if task == "clothes" else EMOJI), first.name
    return Conversation(_turns((question, answer)), (image,), candidates, candidates.index(answer), task)
