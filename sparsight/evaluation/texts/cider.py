"""CIDEr-D of captions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_references, column
from sparsight.evaluation.texts.ngrams import Ngram, ngrams, words

ORDER = 4
SIGMA = 6.0  # words
FACTOR = 10.0


class CIDEr(AnswerMetric):
    """CIDEr-D, 0 to 10 (Vedantam et al., CVPR 2015): what COCO's evaluation and ReForm-Eval call CIDEr.

    Cosine of tf-idf weights of n-grams, clipped to the reference's, with a Gaussian penalty on the difference of
    lengths; mean over n = 1..4, references and samples, times 10. Papers mostly print 100 times that: 1.2 here is
    their 120.

    How rare an n-gram is comes from the references of all samples, so that a sample's value depends on the others, and
    one sample alone has 0. Give every sample once; score perturbed runs of the same samples one run at a time. A
    sentence of fewer than 4 words lacks the longer n-grams: it cannot reach 10.

    Words are those of ``sparsight.evaluation.texts.ngrams.words``. ReForm-Eval's scorer splits at spaces only, so
    that there case and full stops count as differences. METEOR is left out: what packages offer needs Java, or WordNet
    from a download.
    """

    def statistics(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """CIDEr-D of every sample, (N, 1), under the rarity of n-grams in all these references."""
        check_references(predictions, targets)
        outputs = [ngrams(words(text), order=ORDER) for text in predictions]
        references = [[ngrams(words(text), order=ORDER) for text in accepted] for accepted in targets]
        documents = Counter(ngram for accepted in references for ngram in set().union(*accepted))
        size = len(references)
        values = []
        for output, accepted in zip(outputs, references, strict=True):
            ours = _weigh(output, documents, size)
            similarities = [_similarity(ours, _weigh(reference, documents, size)) for reference in accepted]
            values.append(FACTOR * sum(similarities) / len(similarities))
        return column(values)

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def _keep(self, predictions: Sequence[str], targets: Sequence[Sequence[str]]) -> Tensor:
        """Texts as bytes, a line of JSON for each sample: values need the references of all processes."""
        check_references(predictions, targets)
        lines = [json.dumps([output, list(accepted)]) for output, accepted in zip(predictions, targets, strict=True)]
        return torch.tensor(list("".join(f"{line}\n" for line in lines).encode()), dtype=torch.uint8)

    def _per_sample(self, kept: Tensor) -> Tensor:
        samples = [json.loads(line) for line in bytes(kept.tolist()).splitlines()]
        return self.statistics([output for output, _ in samples], [accepted for _, accepted in samples])


@dataclass(frozen=True)
class _Weighted:
    """A sentence's tf-idf weights, their Euclidean norm for every n, and its number of words."""

    weights: dict[Ngram, float]
    norms: list[float]
    length: int


def _weigh(counts: Counter[Ngram], documents: Counter[Ngram], size: int) -> _Weighted:
    weights = {ngram: count * math.log(size / max(1, documents[ngram])) for ngram, count in counts.items()}
    squares = [0.0] * ORDER
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight**2
    length = sum(count for ngram, count in counts.items() if len(ngram) == 1)
    return _Weighted(weights, [math.sqrt(square) for square in squares], length)


def _similarity(ours: _Weighted, reference: _Weighted) -> float:
    """Mean over n of clipped cosines, times the penalty, 0 to 1."""
    products = [0.0] * ORDER
    for ngram, weight in ours.weights.items():
        theirs = reference.weights.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, theirs) * theirs
    cosines = [
        product / (one * other) if product else 0.0
        for product, one, other in zip(products, ours.norms, reference.norms, strict=True)
    ]
    return sum(cosines) / ORDER * math.exp(-((ours.length - reference.length) ** 2) / (2 * SIGMA**2))
