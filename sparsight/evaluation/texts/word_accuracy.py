"""Whether an accepted text occurs in a free output: reading of text and of key information (ReForm-Eval)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = {"a", "an", "the"}
SEPARATORS = re.escape("""/\\[](){}<>"`;=+_-@,?!""")


class WordAccuracy(AnswerMetric):
    """Share of samples whose output holds an accepted text as whole words, 0 to 1 (formulation OCROpenEnded).

    Both are lower-cased and reduced to letters, digits and single spaces first: other characters are deleted.
    """

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """1 or 0 for every sample, (N, 1), from outputs and lists of accepted texts."""
        check_references(predictions, targets)
        return column([self._holds(output, accepted) for output, accepted in zip(predictions, targets, strict=True)])

    def normalised(self, text: str) -> str:
        """The form in which texts are compared."""
        return _lower(re.sub(r"[^\w\s]|_", "", text))

    def _holds(self, output: str, accepted: Sequence[str]) -> bool:
        return any(self._occurs(text, output) for text in accepted)

    def _occurs(self, text: str, output: str) -> bool:
        wanted = self.normalised(text)
        # a text of nothing but marks or articles would vanish and then occur everywhere
        wanted, output = (wanted, self.normalised(output)) if wanted else (_lower(text), _lower(output))
        return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", output) is not None


class KeyInformationAccuracy(WordAccuracy):
    """Share of samples whose output holds an accepted text, both normalised as in the VQA challenge, 0 to 1.

    Formulation KIEOpenEnded.

    Lower-case; commas inside numbers and full stops before anything but a digit deleted, other punctuation a space;
    number words up to ten as digits (and none as 0); articles left out. The challenge puts apostrophes into a list of
    contractions; here they are deleted everywhere, which makes the same pairs equal, and a few more (it's, its).
    """

    def normalised(self, text: str) -> str:
        """The form in which texts are compared."""
        text = re.sub(r"(?<=\d),(?=\d)|\.(?!\d)|'", "", text.lower())
        words = re.sub(f"[{SEPARATORS}]", " ", text).split()
        return " ".join(DIGITS.get(word, word) for word in words if word not in ARTICLES)


def _lower(text: str) -> str:
    return " ".join(text.lower().split())
