"""Which option a written answer means; docs/evaluation.md has the rules in a table, which is their test, too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sparsight.evaluation.questions.wording import plain_words, undressed, without_article, without_lead
from sparsight.evaluation.reform_eval.marks import Shown, decided, find_marks, without_list
from sparsight.lvlm.chat.thoughts import split_thought

_PAUSE = re.compile(r"[.,;:!?](?!\d)|\n|\s-+\s|$")
_YES_NO = re.compile(
    r"\W*(yes|no)(?:\s+(?:it|there|they|he|she|this|that|these|those|the|i|we|you|because)\b|[.,;:!?\n]|\s+-)",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|sorry|i\s+mean|on\s+second\s+thought)\b\W*(?:no\b\W*)?", re.IGNORECASE
)
_BOTH = re.compile(r"\W*(?:yes|no)\W+(?:(?:and|or)\W+)(?:yes|no)\b", re.IGNORECASE)


class Choice(NamedTuple):
    """What was understood.

    Args:
        place: Position of the option among those shown; none if no option was meant.
        in_format: Whether it was said by a mark in round brackets, as was asked for.
    """

    place: int | None
    in_format: bool


def parse_choice(written: str, shown: Sequence[tuple[str, str]], *, opened: bool = False) -> Choice:
    """Find the option that an answer means.

    What follows a thought is the answer; what stands in a box or between answer tags, if anything does. The first of
    these that holds decides: it is an option's text and does not begin with a mark in brackets; it has marks (see
    ``sparsight.evaluation.reform_eval.marks.decided``); it begins with an option's text and speaks of no other.

    Args:
        written: What the model wrote.
        shown: Mark and text of the options, as they were shown.
        opened: Whether the prompt ended with a mark that opens a thought.
    """
    thought, answer, unfinished = split_thought(written, opened=opened)
    if unfinished:
        return Choice(None, False)
    same = [place for place, (_, text) in enumerate(shown) if text.strip() == answer.strip()]
    if len(same) == 1:
        return Choice(same[0], False)
    options = [Shown(mark, undressed(text)) for mark, text in shown]
    texts = [_plain(option.text) for option in options]
    answer = without_list(undressed(answer), options)
    answer = _corrected(answer, options)
    found = find_marks(answer, options)
    said = (_plain(answer), _plain(without_lead(answer)))
    exact = next((texts.index(text) for text in said if text and texts.count(text) == 1), None)
    if exact is not None and not any(mark.begins and mark.brackets for mark in found):
        return Choice(exact, False)
    begun = _begun(without_lead(answer), texts)
    # `3, I count three` speaks of a number and not of mark 3, as long as nothing says that it is a mark
    if found and (begun is None or any(mark.brackets or mark.stated for mark in found)):
        place = decided(found, last=bool(thought))
        marked = any(mark.brackets == "(" for mark in found if mark.place == place and not mark.denied)
        return Choice(place, marked)
    return Choice(begun, False)


def _corrected(answer: str, options: Sequence[Shown]) -> str:
    """What follows the last correction, if that has a mark which is meant."""
    for said in reversed([*_CORRECTION.finditer(answer)]):
        rest = answer[said.end() :]
        if any(not mark.denied for mark in find_marks(rest, options)):
            return rest
    return answer


def _plain(text: str) -> str:
    return " ".join(without_article(plain_words(text)))


def _begun(answer: str, texts: Sequence[str]) -> int | None:
    """Position of the option with whose text an answer begins before a pause, unless it speaks of another one."""
    if {"yes", "no"} <= {*texts}:  # `Yes, there is no cat` and `No it is not` say one of the two
        found = None if _BOTH.match(answer) else _YES_NO.match(answer)
        return None if found is None else texts.index(found[1].casefold())
    for pause in reversed([*_PAUSE.finditer(answer)]):
        said = _plain(answer[: pause.start()])
        if said and texts.count(said) == 1:
            rest = f" {' '.join(plain_words(answer[pause.end() :]))} "
            other = any(text and text != said and f" {text} " in rest for text in texts)
            return None if other else texts.index(said)
    return None
