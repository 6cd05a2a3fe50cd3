"""Marks of options in a written answer: where they stand, which of them are meant, denied, or left open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sparsight.evaluation.questions.wording import lead_end

_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_RUNS_ON = re.compile(r"[0-9A-Za-z_\u00c0-\u024f]")  # a letter beside a mark; Chinese is written without spaces
_WORDLIKE = "ai"  # marks that are English words
_NEAR = 80  # characters looked at before a mark
# what says that a bare mark behind it is meant; \u7b54\u6848 is the answer, \u9009 the choice in Chinese
_SAYS = re.compile(
    r"(?:(?<![^\W_])(?:answer|option|choice|letter|choose|pick|select|correct|go\s+with|therefore|thus|hence|it\s+is|it's"
    r"|must\s+be|should\s+be)(?![^\W_])|\u7b54\u6848|\u9009\u9879?)"
    r"(?:\s+(?:to\s+(?:the|this)\s+question|here))?(?:\s*(?:is|would\s+be|must\s+be|should\s+be|\u662f|\u4e3a))?"
    r"(?:\s+(?:therefore|thus|clearly|probably|most\s+likely|the|option|choice))*\s*[:=,-]*\s*$",
    re.IGNORECASE,
)
_ENDS = re.compile(r"\s*(?:$|\n|[\])}>\u3001\u3002]|[.:,;!?](?!\w)|-+\s)")
_SAID_OF = re.compile(
    r"\s+(?:because|since|as|for|which|is\s+(?:the\s+)?(?:correct|right|best|answer)|seems|fits|matches)\b",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bcannot|\brather\s+than|\binstead\s+of|\bexcept|\bexcluding|\bunlike"
    r"|\b(?:rules?|ruled|ruling)\s+out|\beliminated?|\beliminates)"
    r"(?:\s+(?:be|is|the|an?|options?|choices?|answers?|for|choose|pick|select))*\s*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s*(?:(?:,?\s*(?:is|are|was|were|would\s+be|can\s+be|could\s+be|does|do|seems)\s+"
    r"(?:(?:also|clearly|obviously|definitely|simply|both)\s+)*|[:=-]\s*)"
    r"(?:not|wrong|incorrect|false|out|ruled\s+out|eliminated|impossible)\b"
    r"|(?:cannot|can't|isn't|doesn't|wouldn't)\b|\?\s*no\b)",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\W*(?:\b(?:and|or|nor)\b\W*)?(?:\b(?:option|choice)\b\W*)?", re.IGNORECASE)
_WORD_JOINED = re.compile(r"\W*\b(?:and|or|nor)\b\W*(?:\b(?:option|choice|an?|the)\b\W*)?", re.IGNORECASE)


_JOINED_BEFORE = re.compile(
    r"(?<![0-9A-Za-z])([0-9A-Za-z])\W*\b(?:and|or|nor)\b\W*(?:\b(?:option|choice)\b\W*)?$", re.IGNORECASE
)


class Shown(NamedTuple):
    """An option as it was shown: its mark and its text."""

    mark: str
    text: str


class Mark(NamedTuple):
    """A mark in an answer.

    Args:
        place: Position of its option.
        start: Where it begins.
        end: Where it ends, its option's text included if that follows.
        brackets: The bracket before it, if it stands in brackets.
        begins: Whether the answer begins with it.
        stated: Whether words such as ``Answer:`` say that it is meant.
        denied: Whether it is said not to be meant.
        open: Whether it is one of alternatives.
    """

    place: int
    start: int
    end: int
    brackets: str
    begins: bool
    stated: bool
    denied: bool
    open: bool = False


def find_marks(answer: str, options: Sequence[Shown]) -> list[Mark]:
    """Marks of the options in an answer, in their order.

    In brackets, a letter or digit is a mark if an option has it and no word runs into it: ``(s)he`` holds none. A bare
    one is, where the answer or a line begins with it, or words such as ``option`` stand before it, and where it also
    ends there, or its option's text or ``because`` follows: a cat is no mark.

    Args:
        answer: Undressed text.
        options: The options, with undressed texts.
    """
    places = {option.mark.casefold(): place for place, option in enumerate(options)}
    held = _held(answer, options)
    found: list[Mark] = []
    for match in re.finditer(r"[0-9A-Za-z]", answer):
        place = places.get(match[0].casefold())
        if place is None or held[match.start()] or (found and match.start() < found[-1].end):
            continue
        mark = _bracketed(answer, match.start(), place, options) or _bare(answer, match.start(), place, options)
        if mark is not None:
            found.append(mark)
    return _with_alternatives(answer, found, options)


def decided(marks: Sequence[Mark], *, last: bool) -> int | None:
    """Position of the option that marks say.

    Denied ones do not count. The one that the answer begins with is meant, unless it is one of alternatives and another
    is stated; else the last that is stated, else the only
    one; of several the last where ``last`` is set. Nothing is, where that one is an alternative among others.
    """
    meant = [mark for mark in marks if not mark.denied]
    stated = [mark for mark in meant if mark.stated]
    if not meant:
        return None
    if meant[0].begins and not (meant[0].open and stated):
        chosen = meant[0]
    elif stated:
        chosen = stated[-1]
    elif last or len({mark.place for mark in meant}) == 1:
        chosen = meant[-1]
    else:
        return None
    return None if chosen.open else chosen.place


def without_list(answer: str, options: Sequence[Shown]) -> str:
    """An answer without copies of the list of all options, which choose none of them."""
    each = (rf"[(\[{{<]?{re.escape(mark)}[)\]}}>.:]*\s*{re.escape(text.strip())}" for mark, text in options)
    listed = r"\W*(?:\b(?:and|or)\b\W*)?".join(each)
    return re.sub(rf"(?:\boptions?\W*)?{listed}(?!\w)", " ", answer, flags=re.IGNORECASE)


def _held(answer: str, options: Sequence[Shown]) -> list[bool]:
    """Which characters belong to an option's text that itself has brackets."""
    held = [False] * len(answer)
    for option in options:
        if option.text and any(bracket in option.text for bracket in _PAIRS):
            for match in re.finditer(re.escape(option.text), answer, re.IGNORECASE):
                held[match.start() : match.end()] = [True] * (match.end() - match.start())
    return held


def _bracketed(answer: str, at: int, place: int, options: Sequence[Shown]) -> Mark | None:
    start = len(answer[:at].rstrip()) - 1
    end = len(answer) - len(answer[at + 1 :].lstrip()) + 1
    opening = answer[start] if start >= 0 else ""
    if opening not in _PAIRS or answer[end - 1 : end] != _PAIRS[opening]:
        return None
    behind = _behind_text(answer, end, options[place].text)
    runs_in = _RUNS_ON.match(answer[start - 1 : start]) and not _SAYS.search(answer[:start])
    if runs_in or (behind == end and _RUNS_ON.match(answer, end)):
        return None
    return _mark(answer, place, start, behind, brackets=opening)


def _bare(answer: str, at: int, place: int, options: Sequence[Shown]) -> Mark | None:
    end = at + 1
    beside = answer[max(at - 1, 0) : at], answer[end : end + 1]
    if any(_RUNS_ON.match(one) for one in beside) or re.match(r"'\w", answer[end : end + 2]):
        return None
    line_start = not re.search(r"\w", answer[:at].rpartition("\n")[2])
    behind = _behind_text(answer, end, options[place].text)
    mark = _mark(answer, place, at, behind, brackets="")
    ends = _ENDS.match(answer, behind) is not None
    wordlike = answer[at].casefold() in _WORDLIKE
    exact = answer[at] == options[place].mark
    follows = (not wordlike and behind > end) or (exact and _SAID_OF.match(answer, end) is not None)
    if mark.begins or mark.stated:
        return mark if ends or follows else None
    return mark if line_start and re.match(r"\W*(?:$|\n)", answer[end:]) else None


def _mark(answer: str, place: int, start: int, end: int, *, brackets: str) -> Mark:
    lead = lead_end(answer)
    before = answer[max(0, start - _NEAR) : start]
    return Mark(
        place=place,
        start=start,
        end=end,
        brackets=brackets,
        begins=start >= lead and not re.search(r"\w", answer[lead:start]),
        stated=_SAYS.search(before) is not None,
        denied=_DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.match(answer, end) is not None,
    )


def _behind_text(answer: str, end: int, text: str) -> int:
    """Where a mark ends together with its option's text, if that follows it."""
    text = text.strip()
    found = re.compile(rf"[\s.:)-]*{re.escape(text)}(?!\w)", re.IGNORECASE).match(answer, end) if text else None
    return found.end() if found else end


def _with_alternatives(answer: str, marks: Sequence[Mark], options: Sequence[Shown]) -> list[Mark]:
    """The marks, those told as alternatives of each other (``A or B``) open, and denied if the first of them is."""
    found = [mark._replace(open=_has_alternative(answer, mark, options)) for mark in marks]
    for number in range(1, len(found)):
        before, mark = found[number - 1 : number + 1]
        if before.place == mark.place or not _JOINED.fullmatch(answer, before.end, mark.start):
            continue
        if before.denied:  # `neither (A) nor (B)`, but not `not (A), (B)`
            denied = mark.denied or _WORD_JOINED.match(answer, before.end) is not None
            found[number] = mark._replace(denied=denied)
        elif not mark.denied:
            found[number - 1], found[number] = before._replace(open=True), mark._replace(open=True)
    return found


def _has_alternative(answer: str, mark: Mark, options: Sequence[Shown]) -> bool:
    """Whether a bare mark beside a mark, or the text of another option, is told as an alternative to it."""
    others = [option for place, option in enumerate(options) if place != mark.place]
    before = _JOINED_BEFORE.search(answer[max(0, mark.start - _NEAR) : mark.start])
    if not mark.denied and before is not None and any(before[1] == option.mark for option in others):
        return True
    joined, by_word = _JOINED.match(answer, mark.end), _WORD_JOINED.match(answer, mark.end)
    at = mark.end if joined is None else joined.end()
    for option in others:
        text = re.compile(rf"{re.escape(option.text)}(?!\w)", re.IGNORECASE)
        if by_word is not None and option.text and text.match(answer, by_word.end()):
            return True
        is_mark = at > mark.end and answer[at : at + 1].casefold() == option.mark.casefold()
        if is_mark and not _RUNS_ON.match(answer, at + 1) and _ENDS.match(answer, at + 1):
            return True
    return False
