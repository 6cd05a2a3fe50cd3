"""One question of an evaluation, whatever data set it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from PIL import Image

from sparsight.common.text import check_text
from sparsight.evaluation.questions.question import Formulation
from sparsight.lvlm.chat.conversation import IMAGE, Turn


@dataclass(frozen=True)
class Sample:
    """A question in one of ReForm-Eval's formulations.

    Args:
        id: Its name, unique in its task.
        questions: The question, and other wordings of it. ``<image>`` says where the images go; without it they come
            first.
        images: Images, in the order of their ``<image>``.
        options: Answers to choose from (SingleChoice).
        answer: Position of the right one among them.
        references: Accepted answers (the other formulations): the text in the image, or captions.
        history: Earlier turns of a dialogue about the same images, without ``<image>``.
        turn: Number of this question in its dialogue, from 0.
        dialogue: What all questions of that dialogue have in common, such as its id; they are drawn together.
        categories: In which a benchmark counts it.
    """

    id: str
    questions: tuple[str, ...]
    images: tuple[Image.Image, ...] = ()
    options: tuple[str, ...] = ()
    answer: int | None = None
    references: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    turn: int | None = None
    dialogue: str | None = None
    # left out of hashes of questions, which are older
    categories: tuple[str, ...] = field(default=(), repr=False)

    def check(self, formulation: Formulation) -> None:
        """See that the parts fit together.

        Raises:
            ValueError: They do not; it says which.
        """
        said = (turn.text for turn in self.history)
        for text in (*self.questions, *self.options, *self.references, *said):
            check_text(text)
        if not self.questions or not all(question.strip() for question in self.questions):
            raise ValueError("there is no question, or an empty wording of it")
        places = {question.count(IMAGE) for question in self.questions} - {0, len(self.images)}
        if places:
            raise ValueError(
                f"a question has {places.pop()} places for pictures ({IMAGE}), there are {len(self.images)}"
            )
        if any(IMAGE in text for text in (*self.options, *(turn.text for turn in self.history))):
            raise ValueError(f"an option or an earlier turn holds {IMAGE}; pictures belong to the question")
        if self.turn is not None and self.turn < 0:
            raise ValueError(f"turn is {self.turn}; the first question of a dialogue has turn 0")
        if formulation not in get_args(Formulation):
            raise ValueError(f"formulation {formulation!r} is unknown; known: {', '.join(get_args(Formulation))}")
        if formulation == "SingleChoice":
            self._check_options()
        elif not self.references or not all(text.strip() for text in self.references):
            raise ValueError(f"{formulation} needs accepted answers, got {list(self.references)}")

    def _check_options(self) -> None:
        if len(self.options) < 2 or len({option.strip() for option in self.options} - {""}) < len(self.options):
            raise ValueError(f"there must be two or more different options, none empty: {list(self.options)}")
        if self.answer is None or not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer is {self.answer}, not the position of one of {len(self.options)} options")
