"""Wrong options of a question, chosen by rule from what the data set has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

import numpy as np

from datamodules.evaluation.tasks.similarity import Similarity, plain

_NUMBER = re.compile(r"\d+(\.\d+)?")
_OPPOSITE = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes"}


def distractors(
    right: str, candidates: Iterable[str], count: int, *, rng: np.random.Generator, similar: Similarity | None = None
) -> list[str]:
    """Wrong options from a set of names, such as the classes of a data set.

    They are drawn; with ``similar`` the most similar come first, and drawing only decides between equally similar ones.
    Names that differ in capitals, spaces, an article or a full stop count as one.

    Args:
        right: The right option.
        candidates: Names to choose from; the right one may be among them.
        count: How many are wanted.
        rng: Source of the draw.
        similar: Says how similar names are.

    Raises:
        ValueError: There are too few different names.
    """
    kinds = {plain(name): name for name in sorted(candidates, reverse=True)}
    others = [name for kind, name in sorted(kinds.items()) if kind != plain(right)]
    if len(others) < count:
        raise ValueError(f"{right!r} needs {count} wrong options, there are {len(others)}: ask for fewer options")
    drawn = [others[place] for place in rng.permutation(len(others))]
    if similar is not None:
        scores = similar(right, drawn)
        drawn = [drawn[place] for place in np.argsort(-np.asarray(scores), kind="stable")]
    return drawn[:count]


def answer_distractors(
    right: str, answers: Iterable[str], count: int, *, rng: np.random.Generator, similar: Similarity | None = None
) -> list[str]:
    """Wrong options of an open question: to yes the answer no, to a number near numbers, else other answers.

    Args:
        right: The right answer.
        answers: Answers to other questions; of these, numbers, yes and no are left out.
        count: How many are wanted; yes and no have one.
        rng: Source of the draw.
        similar: Says how similar answers are.

    Raises:
        ValueError: There are too few different answers.
    """
    if right.strip() in _OPPOSITE:
        return [_OPPOSITE[right.strip()]]
    if _NUMBER.fullmatch(right.strip()):
        return near_numbers(right.strip(), count, rng=rng)
    texts = [text for text in answers if text.strip() not in _OPPOSITE and not _NUMBER.fullmatch(text.strip())]
    return distractors(right, texts, count, rng=rng, similar=similar)


def near_numbers(right: str, count: int, *, rng: np.random.Generator) -> list[str]:
    """The other numbers of a row of neighbours, in which the right one has a drawn place and is not always the middle.

    Args:
        right: A number without sign; neighbours differ by one in its last digit.
        count: How many are wanted.
        rng: Source of the draw.
    """
    decimals = len(right.partition(".")[2])
    value = int(right.replace(".", ""))
    first = max(0, value - int(rng.integers(count + 1)))
    return [f"{Decimal(n).scaleb(-decimals):f}" for n in range(first, first + count + 1) if n != value]


def paired(names: Iterable[str], similar: Similarity, *, allowed: Callable[[str], Iterable[str]]) -> dict[str, str]:
    """A partner for each name, which is nobody else's: the most similar two first, then those of what is left.

    Args:
        names: All of them.
        similar: Says how similar they are.
        allowed: Which others can be the partner of a name; if one can be another's, that can be its.

    Returns:
        Partners by name, the two of a pair side by side. What is left over goes between two that are paired.

    Raises:
        ValueError: A name cannot have a partner.
    """
    others = {name: list(allowed(name)) for name in sorted(names)}
    scored = [
        (-score, name, other)
        for name, candidates in others.items()
        if candidates
        for other, score in zip(candidates, similar(name, candidates), strict=True)
        if name < other
    ]
    partner: dict[str, str] = {}
    for _, name, other in sorted(scored):
        if name not in partner and other not in partner:
            partner |= {name: other, other: name}
    for left in [name for name in others if name not in partner]:
        between = [name for name in others[left] if partner.get(name) in others[left]]
        if not between:
            raise ValueError(f"{left!r} has no partner among {len(others)} names: leave it out, or let more names in")
        nearest = between[int(np.argmax(similar(left, between)))]
        partner |= {left: partner[nearest], nearest: left}
    return partner


def arranged(right: str, wrong: Sequence[str], *, rng: np.random.Generator) -> tuple[tuple[str, ...], int]:
    """All options in a drawn order, and the position of the right one, which is uniform."""
    options = [right, *wrong]
    order = rng.permutation(len(options)).tolist()
    return tuple(options[place] for place in order), order.index(0)
