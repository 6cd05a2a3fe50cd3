"""Which option a written answer means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_MARK = re.compile(r"\(([0-9A-Za-z])\)")
_BARE = re.compile(r"\s*([0-9A-Za-z])\s*(?:[.):,;]|$)")


class Choice(NamedTuple):
    """What was understood.

    Args:
        place: Position of the option among those shown; none if no option was meant.
        in_format: Whether it was said by a mark in brackets, as was asked for.
    """

    place: int | None
    in_format: bool


def parse_choice(written: str, shown: Sequence[tuple[str, str]]) -> Choice:
    """Find the option that an answer means.

    The first letter or digit in brackets decides, whatever its case. Without one, the text of an option, apart from
    case, punctuation and article, and then a mark at the very beginning that ends there or before punctuation (``B.``)
    count as answers that miss the format. So does the text of an option that itself has something in brackets.

    Args:
        written: What the model wrote.
        shown: Mark and text of the options, as they were shown.
    """
    marks = [mark.casefold() for mark, _ in shown]
    plain = [_plain(text) for _, text in shown]
    said = _plain(written)
    exact = plain.index(said) if said and plain.count(said) == 1 else None
    found = _MARK.search(written)
    if found is not None and (exact is None or not written[: found.start()].strip()):
        mark = found[1].casefold()
        return Choice(marks.index(mark), True) if mark in marks else Choice(None, False)
    bare = _BARE.match(written)
    if exact is None and bare is not None and bare[1].casefold() in marks:
        return Choice(marks.index(bare[1].casefold()), False)
    return Choice(exact, False)


def _plain(text: str) -> str:
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
