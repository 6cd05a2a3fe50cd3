"""One question of an evaluation as it is put to a model, and what would be right."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sparsight.evaluation.questions.variant import Variant

Formulation = Literal["SingleChoice", "OCROpenEnded", "KIEOpenEnded", "Generation"]
Method = Literal["generation", "likelihood"]


class Question(NamedTuple):
    """One question, put once. Batches keep them in a list beside the model's inputs, row by row.

    Args:
        task: Name of its task.
        sample: Id of what it was made from: a sample of a task, a record of a source.
        text: What is asked; empty where it is a whole conversation.
        images: How many belong to it.
        options: Answers to choose from, in their own order; with one there is nothing to choose.
        answer: Position of the right one.
        references: Accepted texts, of questions without options.
        formulation: What is asked for.
        position: In its source, by which validations know it.
        dialogue: Id of its dialogue.
        turn: Number in its dialogue.
        run: Number of the run, where it is put several times.
        variant: How it is put in this run; none where that is as in its source.
        rule: By which its benchmark is scored (``sparsight.evaluation.questions.rules``); empty for other tasks.
        categories: In which it is counted, too.
    """

    task: str
    sample: str
    text: str = ""
    images: int = 0
    options: tuple[str, ...] = ()
    answer: int | None = None
    references: tuple[str, ...] = ()
    formulation: Formulation = "SingleChoice"
    position: int = 0
    dialogue: str | None = None
    turn: int | None = None
    run: int = 0
    variant: Variant | None = None
    rule: str = ""
    categories: tuple[str, ...] = ()

    def key(self, method: Method) -> str:
        """Its name among all questions of an evaluation, put by a method."""
        return question_key(self.task, self.sample, self.run, method)

    @property
    def place(self) -> str:
        """Where it comes from, for messages."""
        return f"task {self.task or 'unnamed'}, sample {self.sample}"


def question_key(task: str, sample: str, run: int, method: Method) -> str:
    """Name of a question."""
    return f"{method}/{task}/{run}/{sample}"
