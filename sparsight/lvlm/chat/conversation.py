"""Conversations about images, as plain data that cannot contradict itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from sparsight.common.text import check_text

Role = Literal["system", "user", "assistant"]
IMAGE = "<image>"  # in a text: here is the next image


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Args:
        role: Who speaks.
        text: What is said; ``<image>`` stands for the next image of the conversation.
        reasoning: What the assistant thinks before that.
    """

    role: Role
    text: str
    reasoning: str = ""


@dataclass(frozen=True)
class Conversation:
    """A dialogue with at least one answer of the assistant; with candidates it is an item of an evaluation.

    Args:
        turns: What is said, in order.
        images: Images in the order of their ``<image>``.
        candidates: Answers to choose from in an evaluation; the last assistant turn is the right one.
        answer: Position of the right one among ``candidates``.
        task: Name under which an evaluation counts this item.

    Raises:
        ValueError: A role is unknown, an answer is missing or empty, a text holds half a character or control
            characters, the images are not as many as the places for them, or the candidates do not hold the answer.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    candidates: tuple[str, ...] = ()
    answer: int | None = None
    task: str = ""

    def __post_init__(self) -> None:
        for text in (
            *(part for turn in self.turns for part in (turn.text, turn.reasoning)),
            *self.candidates,
            self.task,
        ):
            check_text(text)
        for number, turn in enumerate(self.turns, start=1):
            if turn.role not in get_args(Role):
                raise ValueError(f"turn {number} has role {turn.role!r}; allowed: {', '.join(get_args(Role))}")
            if turn.role == "assistant" and not turn.text.strip():
                raise ValueError(f"turn {number}, an answer, is empty")
            if turn.role == "assistant" and IMAGE in turn.text + turn.reasoning:
                raise ValueError(f"turn {number}, an answer, holds {IMAGE}; only questions may")
            if turn.role != "assistant" and turn.reasoning:
                raise ValueError(f"turn {number} is no answer and has reasoning; only answers may")
        if all(turn.role != "assistant" for turn in self.turns):
            raise ValueError("there is no answer (assistant turn), so nothing can be learnt")
        places = sum(turn.text.count(IMAGE) for turn in self.turns)
        if places != len(self.images):
            raise ValueError(f"the texts have {places} places for images ({IMAGE}), but {len(self.images)} are given")
        self._check_candidates()

    def _check_candidates(self) -> None:
        if not self.candidates and self.answer is None:
            return
        if self.answer is None or not 0 <= self.answer < len(self.candidates):
            raise ValueError(f"answer is {self.answer}, not the position of one of {len(self.candidates)} candidates")
        if self.candidates[self.answer].strip() != self.question_and_answer[1].text.strip():
            raise ValueError(
                f"candidate {self.answer} is {self.candidates[self.answer]!r}, but the last answer is "
                f"{self.question_and_answer[1].text!r}"
            )
        if len({candidate.strip() for candidate in self.candidates} - {""}) < len(self.candidates):
            raise ValueError(f"the candidates are not all different, or one is empty: {list(self.candidates)}")

    @property
    def question_and_answer(self) -> tuple[tuple[Turn, ...], Turn]:
        """All turns before the last answer, and that answer."""
        last = max(number for number, turn in enumerate(self.turns) if turn.role == "assistant")
        return self.turns[:last], self.turns[last]

    @property
    def extent(self) -> tuple[int, int]:
        """Number of images, and of characters."""
        return len(self.images), sum(len(turn.text) for turn in self.turns)
