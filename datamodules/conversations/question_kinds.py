"""Kinds of questions about labelled images: what each asks, which answers it offers, and which of them is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Task = Literal["naming", "yes_no", "choice", "lettered_choice", "comparison"]
TASKS: tuple[Task, ...] = get_args(Task)
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question about an image of a source.

    Args:
        text: What is asked.
        candidates: Answers to choose from.
        answer: Which of them is right.
        second: Position in the source of a second image, where two are compared.
    """

    text: str
    candidates: Sequence[str]
    answer: int
    second: int | None = None


class Asker:
    """Asks about images of which classes are known.

    Args:
        names: Of the classes.
        labels_N: Classes of the N images; below 0 is unknown.
        vary: Draw among several wordings.
    """

    def __init__(self, names: Sequence[str], labels_N: np.ndarray, *, vary: bool) -> None:
        self.names, self.vary = list(names), vary
        self._labels_N = labels_N
        self._members = [np.flatnonzero(labels_N == label) for label in range(len(names))]

    def ask(self, task: Task, rng: np.random.Generator, record: int) -> Question:
        """A question of that kind about the image at a position; what is drawn for it comes from ``rng``."""
        make: dict[Task, Callable[[np.random.Generator, int], Question]] = {
            "naming": self._naming,
            "yes_no": self._yes_no,
            "choice": self._choice,
            "lettered_choice": self._lettered_choice,
            "comparison": self._comparison,
        }
        return make[task](rng, record)

    def _naming(self, rng: np.random.Generator, record: int) -> Question:
        return Question(self._word(rng, NAMING), self.names, int(self._labels_N[record]))

    def _yes_no(self, rng: np.random.Generator, record: int) -> Question:
        no = int(rng.integers(2))
        asked = self._other(rng, record) if no else int(self._labels_N[record])
        return Question(self._word(rng, YES_NO).format(self.names[asked]), ("yes", "no"), no)

    def _choice(self, rng: np.random.Generator, record: int) -> Question:
        options, answer = self._options(rng, record)
        listed = f"{', '.join(options[:-1])} or {options[-1]}"
        return Question(self._word(rng, CHOICE).format(listed), options, answer)

    def _lettered_choice(self, rng: np.random.Generator, record: int) -> Question:
        options, answer = self._options(rng, record)
        listed = " ".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
        return Question(self._word(rng, LETTERED).format(listed), _LETTERS[: len(options)], answer)

    def _comparison(self, rng: np.random.Generator, record: int) -> Question:
        label = int(self._labels_N[record])
        if rng.integers(2):
            no = int(rng.integers(2))
            second = self._image(rng, self._other(rng, record) if no else label, but=record)
            return Question(self._word(rng, SAME), ("yes", "no"), no, second)
        other, answer = self._other(rng, record), int(rng.integers(2))
        text = self._word(rng, WHICH).format(self.names[other if answer else label])
        return Question(text, ("first", "second"), answer, self._image(rng, other, but=record))

    def _word(self, rng: np.random.Generator, wordings: Sequence[str]) -> str:
        return wordings[int(rng.integers(len(wordings)))] if self.vary else wordings[0]

    def _other(self, rng: np.random.Generator, record: int) -> int:
        """Another class, of which there are images."""
        label = self._labels_N[record]
        others = [other for other, members in enumerate(self._members) if other != label and len(members)]
        return int(rng.choice(others)) if others else int(label)

    def _options(self, rng: np.random.Generator, record: int) -> tuple[list[str], int]:
        label = int(self._labels_N[record])
        wrong = [other for other in range(len(self.names)) if other != label]
        numbers = [label, *rng.permutation(wrong)[: len(_LETTERS) - 1].tolist()]
        order = rng.permutation(len(numbers))
        return [self.names[numbers[place]] for place in order], int(np.flatnonzero(order == 0)[0])

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
