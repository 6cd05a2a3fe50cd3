"""The one rule for labels: numbers keep their numbers in whatever form they are written, all else are class names."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral
from typing import NoReturn

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sparsight.common.text import BadText, clean_text

_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d*)?([eE][+-]?\d{1,2})?", re.ASCII)
_DIGITS = re.compile(r"[+-]?[\d.]{19,}([eE].*)?", re.ASCII)
_MOST = 2**31  # above any number of classes
_NO_LABEL = "it has no label"
_log = logging.getLogger(__name__)


class NotALabel(ValueError):
    """A value is neither the number nor the name of a class, or says that there is none."""


@dataclass(frozen=True)
class Labels:
    """The labels of a source.

    Args:
        numbers: Class number of every record; ``None`` where it cannot be told.
        classes: Names of the classes, if they have any.
        bad: For every record without a number the reason.
    """

    numbers: list[int | None]
    classes: list[str] | None
    bad: dict[int, str]


def read_label(value: object) -> int | str:
    """Number or name that a label's value stands for.

    ``3``, ``3.0``, ``"3"``, ``"3.0"``, ``" 3 "`` and ``"3e0"`` are the number 3, ``true`` and ``false`` are names, and
    so is every other text, in Unicode's composed form.

    Raises:
        NotALabel: There is none (nothing, a blank text, a float that is not a number), or it is a broken number, a
            list, an object or no text that can be used.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise NotALabel(_NO_LABEL)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (Integral, float)):
        return _whole(float(value) if isinstance(value, float) else int(value), value)
    try:
        text = clean_text(value, what="label")
    except BadText as error:
        raise NotALabel(str(error)) from error
    if not text:
        raise NotALabel(_NO_LABEL)
    if _NUMBER.fullmatch(text):
        return _whole(float(text), text) if set(text) & set(".eE") else _whole(int(text), text)
    if _DIGITS.fullmatch(text):
        raise NotALabel(f"label {text[:40]!r} is too large for the number of a class")
    return unicodedata.normalize("NFC", text)


class ClassNumbers:
    """Finds the number of one label where the others need not be known.

    Texts are looked up among the names first. Where all names are numbers themselves, so are all labels.

    Args:
        classes: Names in the order of their numbers; ``None`` where labels are numbers.
    """

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.classes = classes
        names = [_read_name(name) for name in classes or ()]
        once = {name for name, count in Counter(names).items() if count == 1}
        self._place = {name: place for place, name in enumerate(names) if name in once}
        self._only_by_name = bool(names) and all(isinstance(name, int) for name in names)

    def __call__(self, value: object) -> int:
        """Class number of a label.

        Raises:
            NotALabel: It is neither the name nor the number of a class.
        """
        label = read_label(value)
        if (isinstance(value, (str, bool)) or self._only_by_name) and label in self._place:
            return self._place[label]
        beyond = isinstance(label, int) and self.classes is not None and label >= len(self.classes)
        if isinstance(label, str) or label < 0 or beyond or self._only_by_name:
            raise NotALabel(f"label {str(value)[:40]!r} is neither the name nor the number of a class")
        return label


def number_labels(values: Sequence[object], *, classes: list[str] | None, where: str) -> Labels:
    """Turn labels into numbers: numbers stay as they are, names get the place of their class.

    Args:
        values: All labels of a source, as it holds them; see ``read_label``.
        classes: Names in the order of their numbers; ``None`` sorts the names that occur.
        where: What the labels belong to, for messages.

    Raises:
        ValueError: If numbers and names are mixed, a name is not in ``classes``, or a number is negative or too high.
    """
    bad: dict[int, str] = {}
    labels: list[int | str | None] = []
    for place, value in enumerate(values):
        try:
            labels.append(read_label(value))
        except NotALabel as error:
            bad[place] = str(error)
            labels.append(None)
    found = {label for label in labels if label is not None}
    names = {label for label in found if isinstance(label, str)}
    if classes is None and names and len(names) < len(found):
        raise ValueError(
            f"{where} holds {min(found - names, key=str)!r} and {min(names)!r} among its labels; they must be all "
            "whole numbers or all names, or give `classes`"
        )
    if classes is None and not names:
        check_labels([label for label in labels if isinstance(label, int)], classes=None, where=where)
        return Labels([label if isinstance(label, int) else None for label in labels], None, bad)
    known = sorted(name for name in found if isinstance(name, str)) if classes is None else classes
    _tell_alike(known, where)
    number_of = ClassNumbers(known)
    numbers: list[int | None] = []
    for value, label in zip(values, labels, strict=True):
        try:
            numbers.append(None if label is None else number_of(value))
        except NotALabel:
            _refuse(label, known, where)
    return Labels(numbers, known, bad)


def refuse_names(values: Iterable[object], *, where: str) -> None:
    """Refuse labels that are names where classes are needed for them, told by the first ones.

    Raises:
        ValueError: All of those that are labels are names.
    """
    labels = []
    for value in values:
        with suppress(NotALabel):  # found again, counted and reported when it is needed
            labels.append(read_label(value))
    if labels and all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"{where} holds names such as {labels[0]!r}, which have no numbers before all are known: give `classes`"
        )


def check_labels(labels: Sequence[int], *, classes: list[str] | None, where: str) -> None:
    """Make sure that every label is the number of a class.

    Raises:
        ValueError: If one is negative, which data sets use for "unknown", or above the last named class.
    """
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0:
        raise ValueError(f"{where} holds label {low}; labels start at 0, so leave the labels out if they are unknown")
    if classes is not None and high >= len(classes):
        raise ValueError(f"{where} holds label {high} but only {len(classes)} classes are named; name them all")


def name_numbers(labels: Labels) -> Labels:
    """Name classes that are numbers by their numbers, where all from 0 on occur; others stay without names."""
    found = {number for number in labels.numbers if number is not None}
    if labels.classes is not None or found != set(range(len(found))):
        return labels
    return replace(labels, classes=[str(number) for number in range(len(found))])


def numbers_by_name(names: Sequence[str]) -> list[int] | None:
    """The numbers that classes are named by, if all are and none twice: ``datasets`` sorts folders 2 and 10 by letters.

    Args:
        names: Of the classes, in any order.
    """
    numbers = [number for name in names if isinstance(number := _read_name(name), int)]
    return numbers if len(set(numbers)) == len(names) else None


@rank_zero_only
def _tell_alike(classes: Sequence[str], where: str) -> None:
    plain = [" ".join(name.split()).casefold() for name in classes]
    alike = sorted(name for name, each in zip(classes, plain, strict=True) if plain.count(each) > 1)
    if alike:
        _log.warning("%s holds classes that differ in capitals or spaces alone: %s", where, alike[:6])


def _refuse(label: int | str | None, classes: list[str], where: str) -> NoReturn:
    if isinstance(label, int):
        check_labels([label], classes=classes, where=where)
    raise ValueError(f"{where} holds class {label!r}, which is not among `classes`, or twice: {classes}")


def _whole(number: float, value: object) -> int:
    if not math.isfinite(number) or number != int(number) or abs(number) >= _MOST:
        raise NotALabel(f"label {str(value)[:40]!r} is no whole number, or too large for that of a class")
    return int(number)


def _read_name(name: str) -> int | str:
    try:
        return read_label(name)
    except NotALabel:  # a blank name, say, which no label can have
        return name
