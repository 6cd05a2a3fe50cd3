"""ROUGE-L of captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column
from sparsight.evaluation.texts.ngrams import words


class RougeL(AnswerMetric):
    """Mean over samples of the F1 of the longest common subsequence of words, 0 to 1 (Lin, ACL workshop 2004).

    Of several references the best F1 counts, words are not stemmed: torchmetrics' and rouge-score's ``rougeL``. (COCO's
    evaluation weighs recall by 1.2 squared instead, and takes precision and recall from different references.) Words
    are those of ``sparsight.evaluation.texts.ngrams.words``.
    """

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """F1 of every sample, (N, 1)."""
        check_references(predictions, targets)
        pairs = zip(predictions, targets, strict=True)
        return column([max(_f1(words(output), words(text)) for text in accepted) for output, accepted in pairs])


def _f1(ours: Sequence[str], reference: Sequence[str]) -> float:
    """2 P R / (P + R) with P = common / ours and R = common / reference."""
    return 2 * _common(ours, reference) / max(1, len(ours) + len(reference))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for other, (diagonal, above) in zip(second, pairwise(best), strict=True):
            row.append(diagonal + 1 if word == other else max(above, row[-1]))
        best = row
    return best[-1]
