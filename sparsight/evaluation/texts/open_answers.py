"""Accuracy of open questions whose answers are numbers or short texts (MMMU: Yue et al., arXiv 2311.16502)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column

_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+\b|-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class OpenAnswerAccuracy(AnswerMetric):
    """Share of outputs whose conclusion holds an accepted text or number, 0 to 1, as MMMU counts.

    The conclusion of a sentence is what follows its last cue (``is``, ``so``, ``answer``, and in the last sentence an
    equals sign); without any cue the whole output counts. Numbers are compared to two decimals, texts are looked for
    in it in lower case.
    """

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """1 or 0 for every sample, (N, 1), from outputs and lists of accepted texts."""
        check_references(predictions, targets)
        pairs = zip(predictions, targets, strict=True)
        return column([float(_is_right(output, accepted)) for output, accepted in pairs])


def _is_right(output: str, accepted: Sequence[str]) -> bool:
    wanted = [form for text in accepted for form in _forms(text)]
    said = [form for text in _conclusions(output) for part in (text, *_NUMBER.findall(text)) for form in _forms(part)]
    return any(
        form in wanted if isinstance(form, float) else any(isinstance(w, str) and w in form for w in wanted)
        for form in said
    )


def _forms(text: str) -> Iterator[str | float]:
    """A number to two decimals, or a text in lower case; a single letter with a space, so that no word holds it."""
    text = text.strip()
    try:
        yield round(float(text.replace(",", "")), 2)
    except ValueError:
        yield from (f" {text.lower()}", f"{text.lower()} ") if len(text) == 1 else (text.lower(),)


def _conclusions(output: str) -> list[str]:
    sentences = _SENTENCES.split(output.strip().strip("."))
    found = []
    for number, sentence in enumerate(sentences, start=1):
        lower = sentence.lower()
        cues = (*_CUES, "=") if number == len(sentences) else _CUES
        tails = [lower.rpartition(cue)[2].strip() for cue in cues if cue in lower]
        if tails and min(tails, key=len) not in ("", *":,.!?;'"):
            found.append(min(tails, key=len))
    return found or [output.strip().strip(".").lower()]
