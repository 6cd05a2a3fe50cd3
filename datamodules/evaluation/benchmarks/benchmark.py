"""What the tasks of standard benchmarks share: rows, answers that must be there, and how questions are put."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from datamodules.evaluation.benchmarks.rows import Rows, decoded
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.tasks.distractors import answer_distractors, arranged
from datamodules.sampler import derive_seed
from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels
from datamodules.sources.records import CorruptRecord, digest
from sparsight.common.errors import require
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.variant import MARKS, Variant
from sparsight.evaluation.reform_eval.prompt import Prompt
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Turn

Weighed = Literal["texts", "marks"]
LETTER = "Answer with the option's letter from the given choices directly."
BRIEFLY = "Answer the question using a single word or phrase."
HIDDEN = (None, "", "?", "hidden", -1)  # answers that are not told
_ANSWERS_OF = 1000  # rows whose answers may be wrong options
_ELSE = "something else"  # a wrong option where there is no other


class BenchmarkTask(EvaluationTask):
    """A standard benchmark, asked as is usual and scored by its own rule, and by likelihood.

    A subclass names what is published and makes a sample of a row.

    Args:
        path: Hub id, folder of the published parquet files, or one such file; the published data set if not given.
        config: Its configuration on the hub, and the folder of that name on disk if there is one; the published one's
            own if not given.
        split: Its split; that with answers which are told if not given.
        revision: Branch, tag or commit on the hub; give a commit for a run that can be repeated.
        columns: Names of columns where they differ from the published ones, such as ``{question: prompt}``.
        weigh: By likelihood of choices, weigh the options' ``texts``, which are then not shown, or their ``marks``.
        seed: Of wrong options of free questions, which are weighed beside the right answer.
        options: How many are weighed then, together with the right one.
        max_pixels: Images with more pixels are refused.
        name: Of the task; the benchmark's if not given.
        instructions: Sentences behind the question, in place of the usual one.

    Raises:
        ConfigurationError: An option is out of range.
    """

    hub: ClassVar[str]
    own_config: ClassVar[str | None] = None
    own_split: ClassVar[str] = "test"
    own_name: ClassVar[str]
    needed: ClassVar[tuple[str, ...]]  # columns
    answered_by: ClassVar[str] = "answer"  # the column of right answers
    own_weigh: ClassVar[Weighed] = "texts"
    lists_options: bool = False  # options are shown where the answer is written
    sentence: str = BRIEFLY  # behind the question
    seed: int

    def __init__(
        self,
        path: str | None = None,
        *,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        columns: dict[str, str] | None = None,
        weigh: Weighed | None = None,
        seed: int = 0,
        options: int = 4,
        max_pixels: int = MAX_PIXELS,
        name: str | None = None,
        instructions: list[str] | None = None,
    ) -> None:
        super().__init__(
            name=name or self.own_name, dimension="benchmark", formulation="SingleChoice", instructions=instructions
        )
        require(weigh in (None, "texts", "marks"), "weigh", weigh, "texts, marks")
        require(options >= 2, "options", options, "2 or more")
        self.path = path or self.hub
        self.config = self.own_config if config is None else config
        self.split = split or self.own_split
        self.revision = revision
        self.columns = columns or {}
        self.weigh: Weighed = weigh or self.own_weigh
        self.seed = seed
        self.options = options
        self.max_pixels = check_max_pixels(max_pixels)
        self.remedy = f", or say where its answers stand (columns: {{{self.answered_by}: NAME}})"
        self._rows = Rows(
            self.path,
            config=self.config,
            split=self.split,
            revision=revision,
            columns=self.columns,
            task=self.name,
        )
        self._places: list[tuple[int, int]] = []  # of every sample: its row, and which of those made of that row
        self._pool: list[str] | None = None

    # ------------------------------------------------------------------------------------------------ of a subclass
    @abstractmethod
    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        """A sample of a row; ``part`` counts those of one row.

        Raises:
            ValueError: It cannot be used.
        """

    def _parts(self) -> Iterable[int]:
        """How many samples are made of each row."""
        return [1] * len(self._rows)

    def _is_told(self, value: Any) -> bool:
        """Whether a value in the column of right answers is one."""
        return value not in HIDDEN if not isinstance(value, list) else bool(value)

    # ------------------------------------------------------------------------------------------------------ samples
    def check_paths(self) -> None:
        """See that a path which cannot be an id of the hub is there."""
        self._rows.check_paths()

    def prepare(self) -> None:
        """Download what is not there."""
        _ = self._rows.data

    def _open(self) -> None:
        self._rows.need(self.needed)
        told = [self._is_told(value) for value in self._rows.column(self.answered_by)]
        if not any(told):
            raise ValueError(
                f"task {self.name}: column {self._rows.own(self.answered_by)!r} of {self._rows.where()} tells none of "
                f"{len(told)} answers: they are hidden, or there are none. Set split to one with answers, such as "
                f"{self.own_split}"
            )
        self._places = [(row, part) for row, parts in enumerate(self._parts()) for part in range(parts)]

    def __len__(self) -> int:
        """Number of samples."""
        self.open()
        return len(self._places)

    def dialogues(self) -> list[list[int]]:
        """Positions of the samples of each row, which stand or fall together."""
        found: dict[int, list[int]] = {}
        for position, (row, _) in enumerate(self._places):
            found.setdefault(row, []).append(position)
        return list(found.values())

    def __getitem__(self, index: int) -> Sample:
        """The question of a row."""
        self.open()
        row, part = self._places[index]
        try:
            values = self._rows[row]
            if not self._is_told(values[self.answered_by]):
                raise ValueError(f"column {self._rows.own(self.answered_by)!r} tells no answer")
            sample = self._make(values, row, part)
            sample.check(self.formulation)
        except ValueError as error:  # a corrupt image, too, is one
            raise CorruptRecord(f"{self.where(index)}: {error}") from error
        return sample

    def where(self, index: int) -> str:
        """Row, data set and split."""
        return self._rows.where(self._places[index][0])

    def fingerprint(self) -> str:
        """Covers the rows and all options."""
        self.open()
        options = sorted((name, value) for name, value in vars(self).items() if not name.startswith("_"))
        return digest([type(self).__name__, self._rows.fingerprint(), *options])

    # ------------------------------------------------------------------------------------------ what subclasses use
    def _image(self, row: Mapping[str, Any], column: str = "image") -> Image.Image:
        return decoded(row[column], column=self._rows.own(column), max_pixels=self.max_pixels)

    def _text(self, row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"column {self._rows.own(column)!r} is {value!r}, not a text")
        return value.strip()

    def _weighed_beside(self, right: str, accepted: Sequence[str], index: int) -> tuple[tuple[str, ...], int]:
        """The right answer of a free question among wrong ones: near numbers, the other of yes and no, or others'."""
        rng = np.random.default_rng(derive_seed(self.seed, index))
        if self._pool is None:
            cells = self._rows.texts(self.answered_by, _ANSWERS_OF)
            self._pool = sorted({text for value in cells for text in self._pooled(value)})
        known = {text.casefold() for text in (*accepted, right)}
        others = [text for text in self._pool if text.casefold() not in known]
        for count in range(self.options - 1, 0, -1):  # a small data set may have too few
            with suppress(ValueError):
                wrong = answer_distractors(right, others, count, rng=rng)
                return arranged(right, [text for text in wrong if text.casefold() not in known] or [_ELSE], rng=rng)
        return arranged(right, [_ELSE], rng=rng)

    def _answers_of(self, value: Any) -> list[str]:
        """Right answers in a cell, the best first."""
        return [str(value)] if self._is_told(value) else []

    def _pooled(self, value: Any) -> list[str]:
        """What of a cell may be a wrong option elsewhere."""
        return self._answers_of(value)[:1]

    # -------------------------------------------------------------------------------------------------- how it is put
    def asked_by(self, method: Method, *, with_images: bool) -> Sequence[str]:
        """The sentence behind the question; choices whose texts are weighed have none."""
        if self.instructions is not None:
            return self.instructions
        silent = self.lists_options and method == "likelihood" and self.weigh == "texts"
        return ("",) if silent else (self.sentence,)

    def prompt(self, sample: Sample, put: Variant, *, instruction: str, method: Method, example: bool) -> Prompt:
        """Images, question, options where they are shown, one a line, and the sentence; no example, nothing begun."""
        question = sample.questions[put.wording]
        lines = [question]
        if self._shows_options(sample, method):
            lines += [f"{mark}. {text}" for mark, text in put.shown(sample.options)]
        sentence = self._sentence(sample, instruction, method)
        places = "" if IMAGE in question else IMAGE * len(sample.images)
        return Prompt((Turn("user", places + "\n".join([*lines, *filter(None, [sentence])])),))

    def _sentence(self, sample: Sample, instruction: str, method: Method) -> str:
        return instruction

    def _shows_options(self, sample: Sample, method: Method) -> bool:
        return self.lists_options and not sample.references and (method == "generation" or self.weigh == "marks")

    def candidates(self, sample: Sample, put: Variant) -> tuple[str, ...]:
        """The options' texts, or the marks that they are shown under."""
        if not self.lists_options or self.weigh == "texts" or sample.references:
            return sample.options
        marks = MARKS[put.marks]
        return tuple(marks[put.order.index(own)] for own in range(len(sample.options)))
