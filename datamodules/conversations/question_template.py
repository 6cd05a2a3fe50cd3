"""Questions put to labelled or captioned images."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datamodules.sources.records import CorruptRecord, Record
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn


@dataclass(frozen=True)
class QuestionTemplate:
    """Makes a conversation of a labelled or captioned image; one that has a conversation keeps it.

    Args:
        question: What is asked, such as ``What is this?``; the image comes first unless ``<image>`` says where.
        answer: The answer, such as ``{label}`` (the name of the class) or ``{caption}``.

    Raises:
        ValueError: Only one of the two is given, or they hold other fields.
    """

    question: str | None
    answer: str | None

    def __post_init__(self) -> None:
        if (self.question is None) != (self.answer is None):
            raise ValueError(f"question is {self.question!r} and answer is {self.answer!r}; give both or neither")
        for option, text in (("question", self.question or ""), ("answer", self.answer or "{label}")):
            fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
            if not fields <= {"label", "caption"}:
                raise ValueError(f"{option} is {text!r}; allowed fields are {{label}} and {{caption}}")

    def conversation(self, record: Record, classes: Sequence[str] | None) -> Conversation:
        """The conversation of a record; with ``{label}`` in the answer, all classes are candidates.

        Raises:
            CorruptRecord: There is none, and nothing to make one of.
        """
        if record.conversation is not None:
            return record.conversation
        if self.question is None or self.answer is None:
            raise CorruptRecord(
                "there is no conversation; set chat.question and chat.answer to ask about labels or captions"
            )
        question = self.question if IMAGE in self.question or record.image is None else IMAGE + self.question
        images = () if record.image is None else (record.image,) * question.count(IMAGE)
        fields = {"caption": record.caption, "label": None}
        candidates: tuple[str, ...] = ()
        if record.label is not None and classes is not None:
            fields["label"] = classes[record.label]
            if "{label}" in self.answer:
                candidates = tuple(self._filled(self.answer, fields | {"label": name}) for name in classes)
        turns = (Turn("user", self._filled(question, fields)), Turn("assistant", self._filled(self.answer, fields)))
        try:
            return Conversation(turns, images, candidates, record.label if candidates else None)
        except ValueError as error:
            raise CorruptRecord(str(error)) from error

    @staticmethod
    def _filled(text: str, fields: Mapping[str, str | None]) -> str:
        for name, value in fields.items():
            if f"{{{name}}}" in text and value is None:
                raise CorruptRecord(f"{text!r} asks for the {name}, which is not there, or has no name in `classes`")
        return text.format(**fields)
