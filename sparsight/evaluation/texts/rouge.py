"""ROUGE-L of captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column
from sparsight.evaluation.texts.ngrams import words

BETA = 1.2  # weight of recall beside precision in COCO's evaluation


class RougeL(AnswerMetric):
    """Mean over samples of an F score of the longest common subsequence of words, 0 to 1 (Lin, ACL workshop 2004).

    Of several references the best F1 counts, words are not stemmed: torchmetrics' and rouge-score's ``rougeL``. Words
    are those of ``sparsight.evaluation.texts.ngrams.words``.

    Args:
        coco: What COCO's evaluation prints, and papers on captions with it: recall counts 1.2 times as much as
            precision, and each is the best of any reference, so that they may come from two of them.
    """

    def __init__(self, *, coco: bool = False) -> None:
        super().__init__()
        self.score = _coco if coco else _best_f1

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """F score of every sample, (N, 1)."""
        check_references(predictions, targets)
        pairs = zip(predictions, targets, strict=True)
        return column([self.score(words(output), [words(text) for text in accepted]) for output, accepted in pairs])


def _best_f1(ours: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """2 P R / (P + R) with P = common / ours and R = common / reference, of the best reference."""
    return max(2 * _common(ours, reference) / max(1, len(ours) + len(reference)) for reference in references)


def _coco(ours: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """(1 + b^2) P R / (R + b^2 P), each the best of any reference."""
    common = [_common(ours, reference) for reference in references]
    if not max(common):
        return 0.0
    precision = max(common) / len(ours)
    recall = max(each / len(reference) for each, reference in zip(common, references, strict=True) if reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for other, (diagonal, above) in zip(second, pairwise(best), strict=True):
            row.append(diagonal + 1 if word == other else max(above, row[-1]))
        best = row
    return best[-1]
