"""What tasks share that are made of the records of a source."""

from __future__ import annotations

import string
from abc import abstractmethod
from itertools import islice

import numpy as np

from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.tasks.similarity import Similarity
from datamodules.sampler import derive_seed
from datamodules.sources.records import CorruptRecord, Record, RecordSource, digest
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.sample import Sample


class ReformulatedTask(EvaluationTask):
    """A question about each record of a source, or about some of them drawn with the seed.

    Records are asked about in a drawn order, of which ``limit`` takes the first ones. What is asked about a record
    depends on the seed and on the source, and never on ``limit``. A record that cannot be read stays in the task, so
    that checking the task reports it.

    Args:
        source: The records.
        default_wordings: Of the question, where the user gives none.
        name: Of the task, unique in its suite.
        dimension: Of the taxonomy, such as ``coarse_perception``.
        formulation: What is asked for.
        limit: Most samples; ``None`` for all.
        seed: Decides which records are taken, wrong options, their order and layouts.
        wordings: Ways to ask, the first being the usual one, with the same fields in braces as the task's own.
        instructions: Sentences that open a prompt, in place of the formulation's own.

    Raises:
        ValueError: An option is out of range, or a wording lacks a field or has an unknown one.
    """

    source: RecordSource
    seed: int
    _similarity: Similarity | None = None  # opened by the tasks that have an option `similar`

    def __init__(
        self,
        source: RecordSource,
        *,
        default_wordings: tuple[str, ...],
        name: str,
        dimension: str,
        formulation: Formulation = "SingleChoice",
        limit: int | None = None,
        seed: int = 0,
        wordings: list[str] | None = None,
        instructions: list[str] | None = None,
    ) -> None:
        super().__init__(name=name, dimension=dimension, formulation=formulation, instructions=instructions)
        self.source = source
        self.limit = limit
        self.seed = seed
        self.wordings = list(default_wordings) if wordings is None else wordings
        self._order: list[int] = []  # positions of all records, drawn
        self._ranks: list[int] = []  # of every position, in that order
        self._chosen: list[int] = []  # those that are asked about
        if limit is not None and limit < 1:
            raise ValueError(f"limit of task {name!r} is {limit}; allowed: 1 or more, or null for all")
        wanted = _fields(default_wordings[0])
        if not self.wordings or any(_fields(wording) != wanted for wording in self.wordings):
            braced = ", ".join(f"{{{field}}}" for field in sorted(wanted)) or "none"
            raise ValueError(f"wordings of task {name!r} are {wordings}; give one or more, with these fields: {braced}")

    def check_paths(self) -> None:
        """See that the files of the source are there."""
        self.source.check_paths()

    def prepare(self) -> None:
        """Download what the source needs."""
        self.source.prepare()

    def _open(self) -> None:
        self.source.open()
        if not len(self.source):
            raise ValueError(
                f"task {self.name!r}: its source {type(self.source).__name__} has no records; check its path"
            )
        self._read()
        self._order = np.random.default_rng(derive_seed(self.seed)).permutation(len(self.source)).tolist()
        self._ranks = np.argsort(self._order).tolist()
        self._chosen = list(islice(filter(self._kept, self._order), self.limit))
        if not self._chosen:
            raise ValueError(f"task {self.name!r}: none of {len(self.source)} records can be asked about")

    def __len__(self) -> int:
        """Number of samples."""
        self.open()
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        """The question about one record; its id is the record's."""
        self.open()
        position = self._chosen[index]
        try:
            rng = np.random.default_rng(derive_seed(self.seed, position))
            sample = self._make(position, self.source[position], rng)
            sample.check(self.formulation)
        except ValueError as error:  # a corrupt record, too, is one
            where, text = self.where(index), str(error)  # some sources say it themselves
            raise CorruptRecord(text if text.startswith(where) else f"{where}: {text}") from error
        return sample

    def where(self, index: int) -> str:
        """File and position of the record."""
        self.open()
        return self.source.where(self._chosen[index])

    def fingerprint(self) -> str:
        """Covers the source with the names of its classes, all options, and embeddings if there are any."""
        self.open()
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        similar = None if self._similarity is None else self._similarity.fingerprint()
        rest = sorted((name, value) for name, value in options.items() if name not in ("source", "similar"))
        return digest([type(self).__name__, self.source.fingerprint(), self.source.classes, similar, *rest])

    def _read(self) -> None:
        """Read what is needed of all records; the source is open."""
        return

    def _usable(self, position: int) -> bool:
        """Whether the record at a position of the source can be asked about."""
        return True

    @abstractmethod
    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        """The sample about the record at a position of the source."""

    def _kept(self, position: int) -> bool:
        try:
            return self._usable(position)
        except CorruptRecord:  # found again, and reported, when it is asked about
            return True

    def _questions(self, **fields: str) -> tuple[str, ...]:
        return tuple(wording.format(**fields) for wording in self.wordings)


def check_options(options: int) -> int:
    """Return ``options`` if it is a choice.

    Raises:
        ValueError: It is below 2.
    """
    if options < 2:
        raise ValueError(f"options is {options}; allowed: 2 or more")
    return options


def _fields(wording: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(wording) if field is not None}
