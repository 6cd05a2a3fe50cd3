"""The samples of an evaluation's task as conversations: to train on, or to be answered by likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from datamodules.evaluation.task import EvaluationTask
from datamodules.sampler import derive_seed
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn


class TaskQuestions(RecordSource):
    """Questions of a task such as ``CountingTask``, without instructions and lists of options, each with its answer.

    The options of a choice are its candidates; of other formulations the first accepted answer is the answer. What is
    asked at a position depends on the task, the seed and the position alone.

    Args:
        task: Makes the questions; its ``limit`` says how many, and what they are called is its ``name``.
        vary: Draw among the wordings of a question, as training wants; otherwise the first is taken.
        seed: Decides the wording.
    """

    def __init__(self, task: EvaluationTask, vary: bool = True, seed: int = 0) -> None:
        self.task = task
        self.vary = vary
        self.seed = seed

    def check_paths(self) -> None:
        """See that the files of the task are there."""
        self.task.check_paths()

    def prepare(self) -> None:
        """Download what the task needs."""
        self.task.prepare()

    def _open(self) -> None:
        self.task.open()

    @property
    def classes(self) -> None:
        """There are none: what is asked about is no class of the image."""
        return None

    def __len__(self) -> int:
        """Number of questions."""
        self.open()
        return len(self.task)

    def __getitem__(self, index: int) -> Record:
        """The question with its images, of which ``image`` is the first."""
        self.open()
        sample = self.task[index]
        answer = sample.references[0] if sample.answer is None else sample.options[sample.answer]
        turns = (*self._asked(sample, index), Turn("assistant", answer))
        try:
            talk = Conversation(turns, sample.images, sample.options, sample.answer, self.task.name)
        except ValueError as error:
            raise CorruptRecord(f"{self.where(index)}: {error}") from error
        return Record(f"{self.task.name} {sample.id}", next(iter(sample.images), None), conversation=talk)

    def where(self, index: int) -> str:
        """Where the sample comes from."""
        self.open()
        return self.task.where(index)

    def fingerprint(self) -> str:
        """Covers the options and the task."""
        self.open()
        return digest([self.vary, self.seed, self.task.fingerprint()])

    def content(self) -> Iterator[object]:
        """The options and the task."""
        yield self.fingerprint()

    def _asked(self, sample: Sample, index: int) -> tuple[Turn, ...]:
        number = derive_seed(self.seed, index) % len(sample.questions) if self.vary else 0
        question = sample.questions[number]
        first, *rest = (*sample.history, Turn("user", question))
        places = "" if IMAGE in question else IMAGE * len(sample.images)
        return replace(first, text=places + first.text), *rest
