"""A processor's chat template, and in which form it takes what is said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsight.lvlm.chat.conversation import IMAGE, Role, Turn

_INLINE = "<think>\n{}\n</think>\n\n"  # how a thought is written where the template knows none
_PART = re.compile(r"\{['\"]type['\"]: ?['\"]text['\"]")


class UnusableConversation(ValueError):
    """One conversation cannot be brought into the model's form; others can."""


class NotWritten(UnusableConversation):
    """The template does not take what is said in the form in which it is given."""


class ChatTemplate:
    """Writes messages by the template of a processor.

    Args:
        processor: With tokenizer and chat template.
        options: Variables of the template, such as ``enable_thinking``.

    Attributes:
        plain: Roles whose content is given as a text, not as a list of parts.
        field: Name by which the template knows the thought of a message; without one it is put before the answer.
        added_end: What is put after every answer.

    Raises:
        ValueError: The template knows no such option.
    """

    def __init__(self, processor: Any, options: Mapping[str, Any]) -> None:
        self.processor = processor
        self.options = _checked(options, str(processor.chat_template))
        self.plain: frozenset[Role] = frozenset()
        self.field: str | None = None
        self.added_end = ""
        self._control = _control_tokens(processor)

    def check(self, turns: Sequence[Turn]) -> None:
        """See that what is said is text and no more.

        Raises:
            UnusableConversation: It holds a control token of the tokenizer.
        """
        for turn in turns:
            found = self._control.search(f"{turn.reasoning}\n{turn.text}".replace(IMAGE, ""))
            if found is not None:
                raise UnusableConversation(
                    f"a turn of {turn.role!r} holds {found[0]!r}, which the tokenizer takes for a control token: take "
                    "it out or write it otherwise"
                )

    def write(self, turns: Sequence[Turn], *, cue: bool = False) -> str:
        """Text of a conversation, with one token where an image goes.

        Args:
            turns: What is said.
            cue: Whether to end with what asks the model for an answer.

        Raises:
            NotWritten: The template refuses it, or its form.
        """
        messages = [self._message(turn) for turn in turns]
        try:
            text = str(
                self.processor.apply_chat_template(messages, add_generation_prompt=cue, tokenize=False, **self.options)
            )
        except Exception as error:  # a template is a program, which may raise anything
            raise NotWritten(f"the chat template refuses it: {type(error).__name__}: {error}") from error
        if len(_PART.findall(text)) > sum(len(_PART.findall(turn.text)) for turn in turns):
            raise NotWritten(f"it writes a list of content parts as data: {_PART.split(text)[1][:60]!r}")
        return text

    def _message(self, turn: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {"role": turn.role}
        text = turn.text
        if turn.role == "assistant":
            text += self.added_end
            if turn.reasoning and self.field is not None:
                message[self.field] = turn.reasoning
            elif turn.reasoning:
                text = _INLINE.format(turn.reasoning) + text
        return message | {"content": text if turn.role in self.plain else [*_parts(text)]}


def _parts(text: str) -> Iterator[dict[str, str]]:
    for number, part in enumerate(text.split(IMAGE)):
        if number > 0:
            yield {"type": "image"}
        part = part.strip("\n") if IMAGE in text else part  # how images are set apart is the template's choice
        if part:
            yield {"type": "text", "text": part}


def _checked(options: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Return options of a template.

    Raises:
        ValueError: The template does not know one, or it is set otherwise.
    """
    for name in options:
        if name in ("messages", "conversation", "add_generation_prompt", "chat_template", "tokenize"):
            raise ValueError(f"chat.template_kwargs holds {name}, which is not for a config to set")
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", template):
            raise ValueError(f"chat.template_kwargs.{name} is no option of the chat template, which never speaks of it")
    return dict(options)


def _control_tokens(processor: Any) -> re.Pattern[str]:
    """Matches what only a template may write; the token of an image has a message of its own."""
    tokenizer = processor.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = {token for token in added | set(tokenizer.all_special_tokens) if len(token) > 1} - {processor.image_token}
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
