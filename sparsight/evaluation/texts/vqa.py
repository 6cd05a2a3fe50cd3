"""Accuracy of free answers by the rules of VQA (Goyal et al., arXiv 1612.00837) and GQA (arXiv 1902.09506)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column
from sparsight.evaluation.texts.word_accuracy import ARTICLES, DIGITS

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_OTHER_WORDS = {"hell", "id", "ill", "its", "shed", "shell", "wed", "well", "were"}  # without apostrophe, not of I'll


class VQAAccuracy(AnswerMetric):
    """Mean over samples of how far people agree with an answer, 0 to 1, as VQAv2 and TextVQA count.

    An answer that three of the others gave is right, one that two gave two thirds: min(1, n / 3), averaged over leaving
    out each person in turn. Where there is one accepted text, that must be met.
    """

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """0 to 1 for every sample, (N, 1), from outputs and the answers that people gave, equal ones as often."""
        check_references(predictions, targets)
        return column([_agreement(output, given) for output, given in zip(predictions, targets, strict=True)])


class ExactMatch(AnswerMetric):
    """Share of outputs that equal an accepted text but for case, punctuation and spaces, 0 to 1, as GQA counts."""

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """1 or 0 for every sample, (N, 1), from outputs and lists of accepted texts."""
        check_references(predictions, targets)
        pairs = zip(predictions, targets, strict=True)
        return column([float(_bare(output) in map(_bare, accepted)) for output, accepted in pairs])


def vqa_normal(text: str) -> str:
    """An answer as VQA compares it.

    Punctuation beside a space vanishes, and all of it in an answer with a comma inside a number; other punctuation
    becomes a space. Then lower case, number words up to ten as digits (none is 0), and no articles. The challenge also
    writes apostrophes into a list of contractions (dont is don't); here they are left out instead, but where that makes
    another word (well, its), so that the same pairs are equal.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    found = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or _IN_NUMBER.search(text) else " ")
    words = (DIGITS.get(word, word) for word in _FULL_STOP.sub("", found).lower().split())
    return " ".join(_without_apostrophe(word) for word in words if word not in ARTICLES)


def _without_apostrophe(word: str) -> str:
    bare = word.replace("'", "")
    return word if not bare or bare in _OTHER_WORDS else bare


def _agreement(output: str, given: Sequence[str]) -> float:
    people = [vqa_normal(each) for each in given]
    said = vqa_normal(output)
    if len(people) == 1:
        return float(said == people[0])
    matches = people.count(said)
    return sum(min(1.0, (matches - (each == said)) / 3) for each in people) / len(people)


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
