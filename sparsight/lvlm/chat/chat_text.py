"""Conversations as text: written by a processor's chat template, with the characters of every answer.

Where answers stand is not guessed: the template also writes the conversation with placeholders for them, and with what
was said in their places that must be the text. So it does not matter what a template puts before an answer, such as an
empty thought, nor whether that depends on the number of turns. transformers' own masks of answers
(``return_assistant_tokens_mask``) need a ``generation`` mark in the template, which those of image-text models lack.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

from sparsight.lvlm.chat.chat_template import ChatTemplate, NotWritten, UnusableConversation
from sparsight.lvlm.chat.conversation import IMAGE, Role, Turn
from sparsight.lvlm.chat.thoughts import split_thought

Reasoning = Literal["leave_out", "show", "train"]
_PROBE = (Turn("user", f"{IMAGE}What is it?"), Turn("assistant", "Some answer."))
_PROBE_MORE = (Turn("user", "Sure?"), Turn("assistant", "Another answer."))
_SYSTEM = Turn("system", "Some rule.")
_REMEDY = "give chat.template a Jinja template that serves the model"
_ANSWER, _THOUGHT = "zq{}answerqz", "zq{}thoughtqz"  # placeholders: no template has a reason to change such words
_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message, by which templates know its thought
# what a template may put between its cue and an answer: nothing, or what begins and ends with a mark in brackets
_ASIDE = re.compile(r"\s*(?:[<\[\u25c1].*[>\]\u25b7])?\s*", re.DOTALL)
_BRACKETS = {"<": ">", "[": "]", "\u25c1": "\u25b7"}
_log = logging.getLogger(__name__)


class Span(NamedTuple):
    """Characters of an answer that carry the loss.

    Args:
        start: First of them.
        stop: Behind the last one, which ends the end token.
        said: What they say, without end token.
    """

    start: int
    stop: int
    said: str


class ChatText:
    """How one model writes conversations.

    Args:
        processor: With tokenizer, image processor and chat template.
        options: Variables of the template, such as ``enable_thinking``.
        reasoning: What happens to thoughts of answers: ``leave_out``, ``show`` without loss, or ``train`` with it.
            Templates may leave out those of earlier turns by themselves.

    Attributes:
        end: Token that ends an answer. Where the template has none, it is the tokenizer's, and put after every answer.

    Raises:
        ValueError: There is no template, it knows no such option, or it does not write an answer where its own
            generation cue asks for it.
    """

    def __init__(
        self, processor: Any, *, options: Mapping[str, Any] | None = None, reasoning: Reasoning = "show"
    ) -> None:
        if reasoning not in get_args(Reasoning):
            raise ValueError(f"reasoning is {reasoning!r}; allowed: {', '.join(get_args(Reasoning))}")
        name = type(processor).__name__
        if processor.chat_template is None:
            raise ValueError(f"{name} comes without a chat template; {_REMEDY}")
        self.processor = processor
        self.template = ChatTemplate(processor, options or {})
        self.reasoning = reasoning
        self.end = ""
        self._header: str | None = None  # what precedes an answer in every turn, once that is known
        try:
            self._learn()
        except UnusableConversation as error:
            raise ValueError(f"the chat template of {name} cannot be trained on: {error}; {_REMEDY}") from error
        self._learn_systems()
        self.template.field = next((field for field in _FIELDS if self._writes_thought(field)), None)

    # ------------------------------------------------------------------------------------------ getting to know it
    def _learn(self) -> None:
        try:
            self._learn_answers()
        except NotWritten as error:
            self.template.plain = frozenset({"assistant"})
            try:
                self._learn_answers()
            except UnusableConversation:
                raise error from None  # what the usual form lacks says more

    def _learn_answers(self) -> None:
        self.template.added_end = ""
        self.end = self._find_end()
        self._header = None
        text, (span,) = self.spans(_PROBE)
        before, asked = self.render(_PROBE[:1], cue=True), self.render(_PROBE[:1])
        header = before[len(asked) :] if before.startswith(asked) else ""
        header = _common_beginning(header, text[len(asked) : span.start])
        with suppress(UnusableConversation):  # earlier answers may lack what the last one has
            longer = self.render((*_PROBE, *_PROBE_MORE))
            place = longer.find(_PROBE[-1].text)
            if longer.startswith(asked) and place >= 0:
                header = _common_beginning(header, longer[len(asked) : place])
        self._header = header.strip()

    def _find_end(self) -> str:
        image, tokenizer = self.processor.image_token, self.processor.tokenizer
        text = self.render(_PROBE)
        if text.count(image) != 1:
            raise UnusableConversation(f"it does not write {image!r} for a content part of type image")
        tail = text.rpartition(_PROBE[-1].text)[2].lstrip()
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        for token in sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True):
            if tail.startswith(token):
                return token
        if tokenizer.eos_token is None:
            raise UnusableConversation("neither it nor the tokenizer has an end token")
        _log.info("the chat template ends answers by no token: %s is put after each", tokenizer.eos_token)
        self.template.added_end = str(tokenizer.eos_token)
        return self.template.added_end

    def _learn_systems(self) -> None:
        """See whether the template takes a system's words as parts or as text; if neither, it refuses them later."""
        usual, system = self.template.plain, frozenset[Role]({"system"})
        for plain in (usual, usual | system):
            self.template.plain = plain
            try:
                if _SYSTEM.text in self.spans((_SYSTEM, *_PROBE))[0]:
                    return
            except UnusableConversation:
                pass
        self.template.plain = usual

    def _writes_thought(self, field: str) -> bool:
        self.template.field = field
        try:
            turns = [_PROBE[0], replace(_PROBE[1], reasoning="Some thought.")]
            return self.template.write(turns).count("Some thought.") == 1
        except UnusableConversation:
            return False

    # -------------------------------------------------------------------------------------------------- rendering
    def render(self, turns: Sequence[Turn], *, cue: bool = False) -> str:
        """Text of a conversation, with one token where an image goes.

        Args:
            turns: What is said.
            cue: Whether to end with what asks the model for an answer.

        Raises:
            UnusableConversation: The template refuses it, or what is said holds a control token of the tokenizer.
        """
        turns = [self._prepared(turn) for turn in turns]
        self.template.check(turns)
        return self.template.write(turns, cue=cue)

    def spans(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """Text of a conversation, and of every answer the characters that carry the loss.

        They begin where the cue ends that asks for the answer, or behind what the template puts between the two, and
        end with the end token.

        Raises:
            UnusableConversation: The template refuses it or does not write it as it asks for it.
        """
        text = self.render(turns)
        turns = [self._prepared(turn) for turn in turns]
        frame = self.template.write([_with_placeholders(turn, n) for n, turn in enumerate(turns)])
        said = {_ANSWER.format(n): turn.text for n, turn in enumerate(turns) if turn.role == "assistant"}
        thoughts = {_THOUGHT.format(n): turn.reasoning for n, turn in enumerate(turns) if turn.reasoning}
        places = self._places(text, frame, said | thoughts, optional=thoughts)
        found = []
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                start = places[_ANSWER.format(number)]
                end = re.compile(rf"\s*{re.escape(self.end)}").match(text, start + len(turn.text))
                if end is None:
                    raise self._otherwise(text, start, turn.text)
                first = self._first(text[:start], turns, number, places.get(_THOUGHT.format(number)))
                found.append(Span(first, end.end(), text[first : end.end()].removesuffix(self.end)))
        return text, found

    def _places(self, text: str, frame: str, said: Mapping[str, str], *, optional: Collection[str]) -> dict[str, int]:
        """Where in the text what stands for which placeholder."""
        found: dict[str, int] = {}
        for placeholder, words in said.items():
            count = frame.count(placeholder)
            if count > 1:
                raise UnusableConversation(f"it writes what was said, {words[:40]!r}, {count} times")
            if count == 0 and placeholder not in optional:
                at = frame.casefold().find(placeholder)
                if at >= 0:
                    raise UnusableConversation(f"{placeholder!r} is written as {frame[at : at + len(placeholder)]!r}")
                raise NotWritten(f"it does not write what was said, {words[:40]!r}")
        at = done = 0
        for match in re.finditer("|".join(map(re.escape, said)), frame):
            between = frame[done : match.start()]
            found[match[0]] = at + len(between)
            if not text.startswith(between + said[match[0]], at):
                raise self._otherwise(text, at + len(between), said[match[0]])
            at, done = at + len(between) + len(said[match[0]]), match.end()
        if text[at:] != frame[done:]:
            raise self._otherwise(text, at, said[match[0]] if found else "")
        return found

    def _first(self, lead: str, turns: Sequence[Turn], number: int, thought: int | None) -> int:
        """Where the loss of an answer begins, before which ``lead`` is written."""
        before = self.template.write(turns[:number], cue=True)
        if thought is not None and self.reasoning == "train":
            return len(before) if lead.startswith(before) else thought
        if lead.startswith(before) and not lead[len(before) :].strip():
            return len(before)
        if self._header is None:
            common = _common_beginning(before, lead)
            asked = self.template.write(turns[:number])
            is_cue = len(common.rstrip()) > len(asked.rstrip()) or before == asked
            rests = before[len(common) :], lead[len(common) :]
        else:
            is_cue = self._header in lead
            rests = "", lead[lead.rfind(self._header) + len(self._header) :] if self._header else ""
        if not is_cue or not all(map(_ASIDE.fullmatch, rests)):
            answer = sum(turn.role == "assistant" for turn in turns[: number + 1])
            raise UnusableConversation(
                f"answer {answer} is not written after what asks for it, {before[-40:]!r}, but after {lead[-40:]!r}: "
                "the template has another generation cue"
            )
        return len(lead)

    def _otherwise(self, text: str, start: int, said: str) -> UnusableConversation:
        rest = text[start : start + len(said) + 40]
        return UnusableConversation(f"answer {said[:40]!r} with end token {self.end!r} is written as {rest!r}")

    def _prepared(self, turn: Turn) -> Turn:
        """A turn as it is to be written: an answer stripped, its thought apart from it."""
        if turn.role != "assistant":
            return turn
        thought, answer, unfinished = split_thought(turn.text)
        if unfinished or not answer.strip() or (thought and turn.reasoning):
            thought, answer = "", turn.text
        reasoning = turn.reasoning.strip() or thought
        return replace(turn, text=answer.strip(), reasoning="" if self.reasoning == "leave_out" else reasoning)


def _with_placeholders(turn: Turn, number: int) -> Turn:
    if turn.role != "assistant":
        return turn
    return replace(turn, text=_ANSWER.format(number), reasoning=turn.reasoning and _THOUGHT.format(number))


def _common_beginning(a: str, b: str) -> str:
    """What two texts begin with, not cut inside brackets."""
    length = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    for opening, closing in _BRACKETS.items():
        if length < len(a) or length < len(b):
            place = a.rfind(opening, 0, length)
            length = place if place > a.rfind(closing, 0, length) else length
    return a[:length]
