"""What a model thinks before it answers, told from the answer."""

from __future__ import annotations

import re
from typing import NamedTuple

# how chat templates of thinking models set a thought apart
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
_CLOSED = re.compile("|".join(re.escape(close) for _, close in MARKS), re.IGNORECASE)
_OPENED = re.compile("|".join(re.escape(mark) for mark, _ in MARKS), re.IGNORECASE)


class Thought(NamedTuple):
    """A text in its two parts.

    Args:
        thought: What comes before the answer, without marks; empty if nothing does.
        answer: The rest; empty where the thought has no end.
        unfinished: Whether the thought has no end, as the text was cut off.
    """

    thought: str
    answer: str
    unfinished: bool = False


def split_thought(text: str, *, opened: bool = False) -> Thought:
    """Tell a thought from the answer behind it: what follows the last mark that ends one.

    Args:
        text: What was written.
        opened: Whether the prompt ended with a mark that opens a thought.
    """
    ends = [*_CLOSED.finditer(text)]
    behind = text[ends[-1].end() :] if ends else text
    again = _OPENED.search(behind)
    if again is not None:  # one that is never closed
        return Thought(_without_marks(text), "", unfinished=True)
    if ends:
        return Thought(_without_marks(text[: ends[-1].start()]), behind.strip())
    return Thought(text.strip(), "", unfinished=True) if opened else Thought("", text)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with a mark that opens a thought, which the model is to go on with."""
    opened = [*_OPENED.finditer(prompt)]
    return bool(opened) and not prompt[opened[-1].end() :].strip()


def _without_marks(text: str) -> str:
    return _OPENED.sub("", _CLOSED.sub("", text)).strip()
