"""Metrics of captions against those that papers print: COCO's evaluation and sacrebleu, on the same words.

COCO's evaluation takes words from a Java program; here it is given ours, joined by spaces, at which it splits.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sacrebleu.metrics import BLEU as SacreBLEU

from sparsight.evaluation.texts import BLEU, CIDEr, RougeL
from sparsight.evaluation.texts.ngrams import words

VOCABULARY = ["A", "the", "Red", "blue", "cat,", "dog", "sits", "on", "two", "T-shirt", "isn't", "sky.", "7", "sea"]


def captions(seed: int) -> tuple[list[str], list[list[str]]]:
    """Outputs and references: near ones, far ones, equal ones, of one word, and of equally near lengths."""
    drawn = random.Random(seed)

    def sentence(least: int, most: int) -> list[str]:
        return drawn.choices(VOCABULARY, k=drawn.randint(least, most))

    targets = [[" ".join(sentence(1, 14)) for _ in range(drawn.randint(1, 5))] for _ in range(40)]
    outputs = []
    for accepted in targets:
        near = drawn.choice(accepted).split()
        near[drawn.randrange(len(near)) :] = sentence(0, 5) or near[-1:]
        outputs.append(" ".join(drawn.choice([near, drawn.choice(accepted).split(), sentence(1, 9)])))
    return outputs, targets


def as_coco(outputs: list[str], targets: list[list[str]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    def joined(text: str) -> str:
        return " ".join(words(text))

    references = {number: [joined(text) for text in accepted] for number, accepted in enumerate(targets)}
    return references, {number: [joined(text)] for number, text in enumerate(outputs)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("metric", "published"), [(CIDEr(), Cider()), (RougeL(coco=True), Rouge())], ids=["cider", "rouge_l"]
)
def test_every_sample_has_the_value_of_cocos_evaluation(metric: Any, published: Any, seed: int) -> None:
    pair = captions(seed)
    mean, values = published.compute_score(*as_coco(*pair))
    found = metric.statistics(*pair)[:, 0]
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))
    assert found.std() > 0.1 and float(found.mean()) == pytest.approx(mean)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_is_sacrebleus_and_cocos(order: int, seed: int) -> None:
    outputs, targets = captions(seed)
    metric = BLEU(order=order)
    metric.update(outputs, targets)
    references, ours = as_coco(outputs, targets)
    most = max(map(len, targets))
    columns = [[(references[number] + [None] * most)[column] for number in references] for column in range(most)]
    sacre = SacreBLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    found = float(metric.compute())
    assert 0.05 < found == pytest.approx(sacre.corpus_score([text for [text] in ours.values()], columns).score / 100)
    assert found == pytest.approx(Bleu(order).compute_score(references, ours, verbose=0)[0][-1], rel=1e-6)


def test_cocos_rouge_takes_precision_and_recall_from_different_references() -> None:
    # precision 1 of "a b", recall 2 / 2 of it and 3 / 3 of none: 1.0 for both although no reference is equal
    pair: tuple[list[str], list[list[str]]] = ["a b c"], [["a b", "a b c d e"]]
    assert float(RougeL(coco=True).statistics(*pair)) == 1
    assert float(RougeL().statistics(*pair)) == pytest.approx(2 * 2 / 5)
    assert float(RougeL(coco=True).statistics(["x"], [["a"]])) == 0
    assert float(RougeL(coco=True).statistics([""], [["a"]])) == 0
