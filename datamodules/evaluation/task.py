"""What a task of an evaluation is: samples of one kind, with a name and a place in the taxonomy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from datamodules.sources.records import RecordSource
from sparsight.evaluation.questions.question import Formulation, Method
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.prompt import Prompt, make_prompt, own_instructions
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.evaluation.reform_eval.taxonomy import CAPTIONS, check_dimension


class EvaluationTask(ABC):
    """Samples of one kind. Cheap to build, opened once, and decoding images only when they are asked for.

    Args:
        name: Of the task, unique in its suite.
        dimension: Of the taxonomy, such as ``coarse_perception``.
        formulation: What is asked for, and so how it is scored.
        instructions: Sentences that open a prompt, in place of the formulation's own.

    Attributes:
        source: The records that samples are made of, of tasks that have such.
        seed: What samples are drawn with, of tasks that draw.
        rule: By which a benchmark is scored, a name in ``sparsight.evaluation.questions.rules.RULES``; empty for tasks
            that are scored by their formulation.
        look: What else of the options decides how questions look; empty where samples and instructions tell all.

    Raises:
        ValueError: The dimension is unknown, or the formulation is not among its own.
    """

    source: RecordSource | None = None
    seed: int | None = None
    rule: str = ""
    look: str = ""

    def __init__(
        self, *, name: str, dimension: str, formulation: Formulation, instructions: list[str] | None = None
    ) -> None:
        if (check_dimension(dimension) == CAPTIONS) != (formulation == "Generation"):
            raise ValueError(
                f"task {name} has dimension {dimension} and formulation {formulation}: captions (Generation), and they "
                f"alone, belong to {CAPTIONS}, whose score is CIDEr"
            )
        self.name = name
        self.dimension = dimension
        self.formulation = formulation
        self.instructions = instructions
        self.remedy = ""  # what else may help where samples cannot be used
        self._opened = False

    def check_paths(self) -> None:  # noqa: B027  not every task has files
        """See that the files that the options name are there, before anything else is loaded.

        Raises:
            FileNotFoundError: One is not.
        """

    def prepare(self) -> None:  # noqa: B027  not every task has something to download
        """Download what the task needs; called in one process a machine."""

    def open(self) -> None:
        """Read what is needed to answer; done once."""
        if not self._opened:
            self._open()
            self._opened = True

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples; the task is open."""

    def asked_by(self, method: Method, *, with_images: bool) -> Sequence[str]:
        """The sentences that may go with the questions, one at a time: the task's own, or those of its formulation."""
        return self.instructions or own_instructions(self.formulation, method, with_images=with_images)

    def prompt(self, sample: Sample, put: Variant, *, instruction: str, method: Method, example: bool) -> Prompt:
        """A sample as a conversation up to the answer.

        Args:
            sample: The question.
            put: How it is put.
            instruction: One of ``asked_by``.
            method: Whether the answer is written or weighed.
            example: Show the form of an answer first.
        """
        return make_prompt(
            sample, put, instruction=instruction, formulation=self.formulation, method=method, example=example
        )

    def candidates(self, sample: Sample, put: Variant) -> tuple[str, ...]:
        """What is weighed in place of each option, in the options' own order."""
        return sample.options

    def dialogues(self) -> list[list[int]]:
        """Positions of the questions of each dialogue; any other sample is alone. The task is open."""
        return [[position] for position in range(len(self))]

    def where(self, index: int) -> str:
        """Where a sample comes from, for messages: file and position, say. The task is open."""
        return f"sample {index} of task {self.name}"

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """One sample, its parts fitting together.

        Raises:
            CorruptRecord: It cannot be used; the message begins with ``where``.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that the samples depend on: data and options."""
