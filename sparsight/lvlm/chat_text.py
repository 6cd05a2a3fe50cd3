"""Conversations as text: written by a processor's chat template, with the characters of every answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from sparsight.lvlm.conversation import IMAGE, Turn

_PROBE = (
    Turn("user", f"{IMAGE}What is it?"),
    Turn("assistant", "Some answer."),
    Turn("user", "Sure?"),
    Turn("assistant", "Another answer."),
)
_REMEDY = "give `chat_template` a Jinja template that serves the model"
_log = logging.getLogger(__name__)


class UnusableConversation(ValueError):
    """One conversation cannot be brought into the model's form; others can."""


class ChatText:
    """How one model writes conversations.

    Args:
        processor: With tokenizer, image processor and chat template.

    Attributes:
        end: Token that ends an answer. Where the template has none, it is the tokenizer's, and put after every answer.

    Raises:
        ValueError: There is no template, or it does not write an answer where its own generation cue asks for it.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._added_end = ""
        self._control = _control_tokens(processor)
        name = type(processor).__name__
        if processor.chat_template is None:
            raise ValueError(f"{name} comes without a chat template; {_REMEDY}")
        try:
            self.end = self._find_end()
            self.spans(_PROBE)
        except UnusableConversation as error:
            raise ValueError(f"the chat template of {name} cannot be trained on: {error}; {_REMEDY}") from error

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
        self._added_end = str(tokenizer.eos_token)
        return self._added_end

    def render(self, turns: Sequence[Turn], *, cue: bool = False) -> str:
        """Text of a conversation, with one token where an image goes.

        Args:
            turns: What is said.
            cue: Whether to end with what asks the model for an answer.

        Raises:
            UnusableConversation: The template refuses it, or what is said holds a control token of the tokenizer.
        """
        for turn in turns:
            found = self._control.search(turn.text.replace(IMAGE, ""))
            if found is not None:
                raise UnusableConversation(
                    f"a turn of {turn.role!r} holds {found[0]!r}, which the tokenizer takes for a control token: take "
                    "it out or write it otherwise"
                )
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=cue, tokenize=False))
        except Exception as error:  # a template is a program, which may raise anything
            raise UnusableConversation(f"the chat template refuses it: {type(error).__name__}: {error}") from error

    def spans(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """Text of a conversation, and of every answer the characters from the end of its cue to that of its end token.

        Raises:
            UnusableConversation: The template refuses it or does not write it as it asks for it.
        """
        text = self.render(turns)
        found: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self.render(turns[:number], cue=True)
            if not text.startswith(before):
                raise UnusableConversation(
                    f"answer {len(found) + 1} is not written after what asks for it, {before[-40:]!r}: the template "
                    "writes earlier turns otherwise once there are later ones, or has another generation cue"
                )
            said = turn.text.strip()
            span = re.compile(rf"\s*{re.escape(said)}\s*{re.escape(self.end)}").match(text, len(before))
            if span is None:
                rest = text[len(before) : len(before) + len(said) + 40]
                raise UnusableConversation(f"answer {said[:40]!r} with end token {self.end!r} is written as {rest!r}")
            found.append(span.span())
        return text, found

    def _content(self, turn: Turn) -> list[dict[str, str]]:
        if turn.role == "assistant":
            return [{"type": "text", "text": turn.text.strip() + self._added_end}]
        parts: list[dict[str, str]] = []
        for number, text in enumerate(turn.text.split(IMAGE)):
            if number > 0:
                parts.append({"type": "image"})
            text = text.strip("\n") if IMAGE in turn.text else text  # how images are set apart is the template's choice
            if text:
                parts.append({"type": "text", "text": text})
        return parts


def _control_tokens(processor: Any) -> re.Pattern[str]:
    """Matches what only a template may write; the token of an image has a message of its own."""
    tokenizer = processor.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = {token for token in added | set(tokenizer.all_special_tokens) if len(token) > 1} - {processor.image_token}
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
