"""Visual questions made of any labelled images, each with its candidates and its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from datamodules.conversations.question_kinds import TASKS, Asker, Question, Task
from datamodules.sampler import derive_seed
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn

_UNKNOWN = -1
_TWO = f"First picture: {IMAGE} Second picture: {IMAGE} "


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
        self.tasks: list[Task] = list(TASKS) if tasks is None else tasks
        self.per_record = per_record
        self.vary = vary
        self.seed = seed
        self._asker = Asker([], np.empty(0, dtype=np.int64), vary=vary)
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks is {self.tasks}; allowed: {', '.join(TASKS)}")
        if per_record < 1:
            raise ValueError(f"per_record is {per_record}; allowed: 1 or more")

    def check_paths(self) -> None:
        """See that the files of the source are there."""
        self.source.check_paths()

    @property
    def is_local(self) -> bool:
        """Whether the source is."""
        return self.source.is_local

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
        self._asker = Asker(names, np.array(labels, dtype=np.int64), vary=self.vary)

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
        return len(self.source) * self.per_record

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

    def _question(self, index: int) -> tuple[Task, Question]:
        record, number = divmod(index, self.per_record)
        # each image starts with another task, so that no task goes with a part of the source alone
        first = derive_seed(self.seed, record) % len(self.tasks)
        task = self.tasks[(first + number) % len(self.tasks)]
        return task, self._asker.ask(task, np.random.default_rng(derive_seed(self.seed, index, 1)), record)

    def _label(self, index: int) -> int | None:
        try:
            return self.source.label_of(index)
        except CorruptRecord:  # found again, counted and reported when the image is asked about
            return _UNKNOWN
