"""A question as it was put to a model, by which it can be put anew with more images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn

Encoded = tuple[dict[str, Tensor], list[list[int]]]  # inputs of the model, and token ids of candidates


class Put:
    """What a model was asked; no dataclass, which Lightning would copy where it moves batches to a device.

    Args:
        turns: The conversation up to the question.
        images: In the order of their places.
        begun: First words of the answer.
        talk: The whole conversation, where its last answer is chosen among candidates and not written.
        max_length: Most tokens of prompt and candidate.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        *,
        begun: str = "",
        talk: Conversation | None = None,
        max_length: int | None = None,
    ) -> None:
        self.turns, self.images, self.begun = tuple(turns), tuple(images), begun
        self.talk, self.max_length = talk, max_length

    @classmethod
    def weighed(cls, talk: Conversation, *, max_length: int | None = None) -> Put:
        """A conversation whose last answer is chosen among candidates."""
        return cls(talk.question_and_answer[0], talk.images, talk=talk, max_length=max_length)

    @property
    def text(self) -> str:
        """The last question, without places of images."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "user").replace(IMAGE, "").strip()

    def beside_first(self, image: Image.Image) -> Put:
        """The question with one more image, behind the first."""
        turns, images = list(self.turns), (self.images[0], image, *self.images[1:])
        number = next(number for number, turn in enumerate(turns) if IMAGE in turn.text)
        turns[number] = replace(turns[number], text=turns[number].text.replace(IMAGE, IMAGE * 2, 1))
        if self.talk is None:
            return Put(turns, images, begun=self.begun)
        whole = (*turns, self.talk.question_and_answer[1])
        return Put.weighed(replace(self.talk, turns=whole, images=images), max_length=self.max_length)

    def encode(self, chat: ChatFormat) -> Encoded:
        """What a model reads.

        Raises:
            UnusableConversation: See ``ChatFormat``.
        """
        if self.talk is None:
            return chat.encode_prompt(self.turns, self.images, begun=self.begun), []
        encoded = chat.encode_question(self.talk, max_length=self.max_length)
        return encoded.inputs, encoded.continuations


@runtime_checkable
class PutAnew(Protocol):
    """Data whose questions can be put anew."""

    chat: ChatFormat | None

    def carry_questions(self) -> None:
        """Let each evaluation batch hold a ``Put`` for each of its questions, as ``put``, from now on."""
        ...

    def joined(self, puts: Sequence[Put]) -> dict[str, Any]:
        """What a batch holds of such questions: ``inputs`` and ``candidates``."""
        ...
