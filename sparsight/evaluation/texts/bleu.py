"""BLEU of captions.

Shape legend: N samples, K numbers of a sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references
from sparsight.evaluation.texts.ngrams import Ngram, ngrams, words

NEVER_REACHED = 1e-12
"""Below the mean of any count that is not 0, so that 0 / 0 becomes 0."""


class BLEU(AnswerMetric):
    """Corpus BLEU with any number of references, 0 to 1 (Papineni et al., ACL 2002), not smoothed.

    Counts are summed over samples before precisions are taken, so it is no mean of sentence scores. Of reference
    lengths the closest counts, the shorter one of two equally close (as in sacrebleu and coco-caption; torchmetrics
    takes the first). Words are those of ``sparsight.evaluation.texts.ngrams.words``.

    Args:
        order: Longest n-grams, 4 for BLEU-4. Samples of fewer words have none and add nothing to that precision.
    """

    def __init__(self, *, order: int = 4) -> None:
        super().__init__(width=2 * order + 2)
        self.order = order

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """For every sample, (N, 2 order + 2): matched n-grams by n, its n-grams by n, its length, the references'."""
        check_references(predictions, targets)
        rows = [self._counts(output, accepted) for output, accepted in zip(predictions, targets, strict=True)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, self.width)

    def combine(self, means: Tensor) -> Tensor:
        """Brevity penalty times geometric mean of precisions; 0 without any match of some n."""
        matched, total, lengths = means.split([self.order, self.order, 2], dim=-1)
        length, reference = lengths.unbind(-1)
        precision = (matched / total.clamp_min(NEVER_REACHED)).log().mean(-1).exp()
        penalty = (1 - reference / length.clamp_min(NEVER_REACHED)).clamp_max(0).exp()
        return penalty * precision

    def _counts(self, output: str, accepted: Sequence[str]) -> list[int]:
        tokens, references = words(output), [words(text) for text in accepted]
        ours = ngrams(tokens, order=self.order)
        allowed: Counter[Ngram] = Counter()
        for reference in references:
            allowed |= ngrams(reference, order=self.order)
        closest = min((abs(len(reference) - len(tokens)), len(reference)) for reference in references)[1]
        return [*self._by_length(ours & allowed), *self._by_length(ours), len(tokens), closest]

    def _by_length(self, counts: Counter[Ngram]) -> list[int]:
        of_length = [0] * self.order
        for ngram, count in counts.items():
            of_length[len(ngram) - 1] += count
        return of_length
