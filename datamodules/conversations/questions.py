"""Visual questions made of any labelled images, each with its candidates and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from datamodules.sampler import derive_seed
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn

Task = Literal["naming", "yes_no", "choice", "lettered_choice", "comparison"]
_LETTERS = "ABCD"
_UNKNOWN = -1
_TWO = f"First picture: {IMAGE} Second picture: {IMAGE} "


@dataclass(frozen=True)
class _Question:
    text: str
    candidates: Sequence[str]
    answer: int
    second: int | None = None  # position in the source of the second image


class LabelledQuestions(RecordSource):
    """Questions about the images of a source with labels and class names.

    - ``naming``: what is shown; candidates are all class names.
    - ``yes_no``: whether a class is shown; half the answers are yes.
    - ``choice``: which of four classes is shown.
    - ``lettered_choice``: which of four classes is shown, with options (A) to (D); the answer is a letter.
    - ``comparison``: of two images: whether they show the same class, or which of them shows a class; half and half,
      and so are the answers.

    The question at a position depends on (seed, position) alone.

    Args:
        source: The images.
        tasks: Kinds of questions, asked in turn.
        per_record: Questions about each image; as many as there are tasks asks each of them once.
        vary: Draw among several wordings, as training wants; otherwise a task always uses the same words.
        seed: Decides wordings, wrong options and second images.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        tasks: list[Task] | None = None,
        per_record: int = 1,
        vary: bool = True,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.tasks: list[Task] = list(get_args(Task)) if tasks is None else tasks
        self.per_record = per_record
        self.vary = vary
        self.seed = seed
        self._names: list[str] = []
        self._labels_N = np.empty(0, dtype=np.int64)
        self._members: list[np.ndarray] = []
        if not self.tasks or not set(self.tasks) <= set(get_args(Task)):
            raise ValueError(f"tasks is {self.tasks}; allowed: {', '.join(get_args(Task))}")
        if per_record < 1:
            raise ValueError(f"per_record is {per_record}; allowed: 1 or more")

    def check_paths(self) -> None:
        """See that the files of the source are there."""
        self.source.check_paths()

    def prepare(self) -> None:
        """Download what the source needs."""
        self.source.prepare()

    def _open(self) -> None:
        self.source.open()
        names = self.source.classes
        if names is None or len(set(names)) < 2:
            raise ValueError(f"questions need two or more class names, {type(self.source).__name__} has {names}")
        labels = [self._label(index) for index in range(len(self.source))]
        if None in labels:
            raise ValueError(f"questions need labels: record {labels.index(None)} of the source has none")
        self._names = list(names)
        self._labels_N = np.array(labels, dtype=np.int64)
        self._members = [np.flatnonzero(self._labels_N == label) for label in range(len(names))]

    @property
    def parts(self) -> Sequence[RecordSource]:
        """The source, or what it is made of."""
        return self.source.parts

    @property
    def classes(self) -> list[str] | None:
        """Names of the source's classes."""
        return self.source.classes

    def __len__(self) -> int:
        """Number of questions."""
        self.open()
        return len(self._labels_N) * self.per_record

    def __getitem__(self, index: int) -> Record:
        """Picture, label and question."""
        self.open()
        task, question = self._question(index)
        record = self.source[index // self.per_record]
        images = (
            (record.needed_image,)
            if question.second is None
            else (record.needed_image, self.source[question.second].needed_image)
        )
        text = (IMAGE if question.second is None else _TWO) + question.text
        turns = (Turn("user", text), Turn("assistant", question.candidates[question.answer]))
        conversation = Conversation(turns, images, tuple(question.candidates), question.answer, task)
        return Record(f"{record.id}#{index}", record.image, record.label, record.caption, conversation)

    def where(self, index: int) -> str:
        """Where the image comes from that a question is about."""
        return f"question {index % self.per_record} about {self.source.where(index // self.per_record)}"

    def extent(self, index: int) -> tuple[int, int]:
        """Number of images and of characters, without decoding any."""
        self.open()
        _, question = self._question(index)
        return 1 if question.second is None else 2, len(question.text + question.candidates[question.answer])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the first image."""
        return self.source.size(index // self.per_record)

    def label_of(self, index: int) -> int | None:
        """Class number of the first image."""
        return self.source.label_of(index // self.per_record)

    def fingerprint(self) -> str:
        """Covers the options and the source."""
        return digest([self.tasks, self.per_record, self.vary, self.seed, self.source.fingerprint()])

    def content(self) -> Iterator[object]:
        """The options, and what the source is made of."""
        yield self.tasks, self.per_record, self.vary, self.seed
        yield from self.source.content()

    # ---------------------------------------------------------------------------------------------------- questions
    def _question(self, index: int) -> tuple[Task, _Question]:
        record, number = divmod(index, self.per_record)
        # each image starts with another task, so that no task goes with a part of the source alone
        first = derive_seed(self.seed, record) % len(self.tasks)
        task = self.tasks[(first + number) % len(self.tasks)]
        make: dict[Task, Callable[[np.random.Generator, int], _Question]] = {
            "naming": self._naming,
            "yes_no": self._yes_no,
            "choice": self._choice,
            "lettered_choice": self._lettered_choice,
            "comparison": self._comparison,
        }
        return task, make[task](np.random.default_rng(derive_seed(self.seed, index, 1)), record)

    def _label(self, index: int) -> int | None:
        try:
            return self.source.label_of(index)
        except CorruptRecord:  # found again, counted and reported when the image is asked about
            return _UNKNOWN

    def _naming(self, rng: np.random.Generator, record: int) -> _Question:
        return _Question(self._word(rng, NAMING), self._names, int(self._labels_N[record]))

    def _yes_no(self, rng: np.random.Generator, record: int) -> _Question:
        no = int(rng.integers(2))
        asked = self._other(rng, record) if no else int(self._labels_N[record])
        return _Question(self._word(rng, YES_NO).format(self._names[asked]), ("yes", "no"), no)

    def _choice(self, rng: np.random.Generator, record: int) -> _Question:
        options, answer = self._options(rng, record)
        listed = f"{', '.join(options[:-1])} or {options[-1]}"
        return _Question(self._word(rng, CHOICE).format(listed), options, answer)

    def _lettered_choice(self, rng: np.random.Generator, record: int) -> _Question:
        options, answer = self._options(rng, record)
        listed = " ".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
        return _Question(self._word(rng, LETTERED).format(listed), _LETTERS[: len(options)], answer)

    def _comparison(self, rng: np.random.Generator, record: int) -> _Question:
        label = int(self._labels_N[record])
        if rng.integers(2):
            no = int(rng.integers(2))
            second = self._image(rng, self._other(rng, record) if no else label, but=record)
            return _Question(self._word(rng, SAME), ("yes", "no"), no, second)
        other, answer = self._other(rng, record), int(rng.integers(2))
        text = self._word(rng, WHICH).format(self._names[other if answer else label])
        return _Question(text, ("first", "second"), answer, self._image(rng, other, but=record))

    def _word(self, rng: np.random.Generator, wordings: Sequence[str]) -> str:
        return wordings[int(rng.integers(len(wordings)))] if self.vary else wordings[0]

    def _other(self, rng: np.random.Generator, record: int) -> int:
        """Another class, of which there are images."""
        label = self._labels_N[record]
        others = [other for other, members in enumerate(self._members) if other != label and len(members)]
        return int(rng.choice(others)) if others else int(label)

    def _options(self, rng: np.random.Generator, record: int) -> tuple[list[str], int]:
        label = int(self._labels_N[record])
        wrong = [other for other in range(len(self._names)) if other != label]
        numbers = [label, *rng.permutation(wrong)[: len(_LETTERS) - 1].tolist()]
        order = rng.permutation(len(numbers))
        return [self._names[numbers[place]] for place in order], int(np.flatnonzero(order == 0)[0])

    def _image(self, rng: np.random.Generator, label: int, *, but: int) -> int:
        members = self._members[label]
        place = int(rng.integers(len(members)))
        if members[place] == but:
            place = (place + 1) % len(members)  # of a class of one image it is the same one again
        return int(members[place])


NAMING = (
    "What is shown?",
    "What is in the picture?",
    "Name the thing in this image.",
    "Which kind of thing is this?",
    "What do you see?",
)
YES_NO = (
    'Does the picture show "{}"? Answer yes or no.',
    'Is this of the kind "{}"?',
    'Would you call this "{}"? Yes or no?',
    'Is "{}" shown here?',
)
CHOICE = (
    "What is shown: {}?",
    "Which of these is in the picture: {}?",
    "Choose what the image shows: {}.",
    "Is this {}?",
)
LETTERED = (
    "What is shown? {} Answer with the letter.",
    "Choose the letter of what is in the picture. {}",
    "{} Which of these is it? Give its letter.",
)
SAME = (
    "Do both pictures show the same kind of thing? Answer yes or no.",
    "Are these two of one kind?",
    "Would you give both images the same name?",
)
WHICH = (
    'Which picture shows "{}", the first or the second?',
    'One of these is of the kind "{}": is it the first or the second?',
    'Where is "{}": in the first image or in the second?',
)
