"""Metrics of answers against values by hand, torchmetrics' own, and exact limits."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest
import torch
from torchmetrics.functional.text import bleu_score, rouge_score

from sparsight.evaluation.texts import (
    BLEU,
    AnswerMetric,
    ChoiceAccuracy,
    CIDEr,
    FormatHitRate,
    Instability,
    KeyInformationAccuracy,
    RougeL,
    TurnCorrelation,
    TurnSlope,
    WordAccuracy,
)
from sparsight.evaluation.texts.ngrams import words

CAPTIONS = [BLEU(), BLEU(order=2), RougeL(), CIDEr()]
WORDS = "a the red blue cat dog sits on near table with two t-shirt isn't sky"


def sentences(count: int, *, seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions, and references from which most of them differ by some words; equally near lengths the shorter first."""
    drawn = random.Random(seed)
    targets = [
        [" ".join(drawn.choices(WORDS.split(), k=drawn.randint(1, 12))) for _ in range(drawn.randint(1, 4))]
        for _ in range(count)
    ]
    predictions = []
    for accepted in targets:
        tokens = drawn.choice(accepted).split() + drawn.choices(WORDS.split(), k=drawn.randint(0, 2))
        tokens[drawn.randrange(len(tokens))] = drawn.choice(WORDS.split())
        predictions.append(" ".join(tokens))
        accepted.sort(key=lambda text: len(text.split()))
    return predictions, targets


def of(metric: AnswerMetric, *answers: Any) -> float:
    """The score of these alone, in one update."""
    metric.reset()
    metric.update(*answers)
    return float(metric.compute())


def test_choices_are_right_or_wrong_and_in_form_or_not() -> None:
    assert of(ChoiceAccuracy(), [0, 1, None, 3], [0, 2, 0, 3]) == 0.5
    assert of(FormatHitRate(), [0, 1, None, 3], [0, 2, 0, 3]) == 0.75
    torch.testing.assert_close(
        ChoiceAccuracy().statistics([None, 0], [0, 0]), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("output", "accepted", "plain", "key"),
    [
        ("It says STOP.", ["stop"], True, True),
        ("It says stopping", ["stop"], False, False),
        ("nonstop", ["stop"], False, False),
        ("new   york\ncity", ["New York"], True, True),
        ("two cats", ["dog", "two"], True, True),
        ("2 cats", ["two"], False, True),
        ("total: 1,234.50", ["1234.50"], True, True),
        ("pay 12.00", ["12"], False, True),
        ("a name of the ship", ["name of ship"], False, True),
        ("Coca-Cola", ["Coca Cola"], False, True),
        ("cocacola", ["Coca-Cola"], True, False),
        ("dont walk", ["don't walk"], True, True),
        ("cost $5 each", ["$5"], True, True),
        ("", ["word"], False, False),
        ("no marks", ["?!"], False, False),
        ("what ?!", ["?!"], True, True),
        ("none", ["the"], False, False),
        ("read the sign", ["the"], True, True),
    ],
)
def test_accepted_texts_occur_as_whole_words(output: str, accepted: list[str], plain: bool, key: bool) -> None:
    assert of(WordAccuracy(), [output], [accepted]) == plain
    assert of(KeyInformationAccuracy(), [output], [accepted]) == key


def test_words_of_captions() -> None:
    assert words("A man's T-shirt, 'red' -- isn't it?\n(No. 7)") == [
        "a",
        "man's",
        "t-shirt",
        "red",
        "isn't",
        "it",
        "no",
        "7",
    ]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_is_torchmetrics(order: int) -> None:
    for seed in range(5):
        predictions, targets = sentences(30, seed=seed)
        expected = float(bleu_score(predictions, targets, n_gram=order))
        assert expected > 0.2
        assert of(BLEU(order=order), predictions, targets) == pytest.approx(expected, rel=1e-5)


def test_bleu_by_hand() -> None:
    # 3 of 4 words (the third "the" is too many), 1 of 3 pairs; 4 words against 6, which is nearer than 1
    value = of(BLEU(order=2), ["the cat the the"], [["the cat and the one dog", "x"]])
    assert value == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * math.exp(1 - 6 / 4))
    # equally near lengths: the shorter reference counts, so that there is no penalty
    assert of(BLEU(order=1), ["a b c"], [["a b c d", "a b"]]) == 1


def test_rouge_is_torchmetrics() -> None:
    predictions, targets = sentences(30, seed=7)
    expected = rouge_score(
        predictions, targets, accumulate="best", rouge_keys="rougeL", normalizer=str.lower, tokenizer=str.split
    )["rougeL_fmeasure"]
    assert of(RougeL(), predictions, targets) == pytest.approx(float(expected), rel=1e-5)


def test_rouge_by_hand() -> None:
    # common: a c d, of 4 and 5 words; the other reference shares 1 of 1
    assert of(RougeL(), ["a c x d"], [["a b c d e", "x"]]) == pytest.approx(2 * 3 / 9)


def test_cider_by_hand() -> None:
    # 2 samples; "x" and "y" are in both, which makes them weigh nothing; every other n-gram weighs ln 2
    predictions, targets = ["x a a", "y"], [["x a b"], ["x y", "y"]]
    documents = {"x": 2, "a": 1, "b": 1, "y": 1}
    assert documents["x"] == 2
    # n = 1: ours a:2, theirs a:1 b:1 -> min(2, 1) * 1 / (2 * sqrt 2); n = 2: ours (x a) (a a), theirs (x a) (a b)
    first = (1 / (2 * math.sqrt(2)) + 1 / 2) / 4
    # n = 1: y alone, equal to both references; lengths differ by 1 from the first
    second = (math.exp(-1 / 72) / 4 + 1 / 4) / 2
    values = CIDEr().statistics(predictions, targets)[:, 0]
    torch.testing.assert_close(values, 10 * torch.tensor([first, second], dtype=torch.float64))


@pytest.mark.parametrize("metric", CAPTIONS, ids=lambda metric: type(metric).__name__)
def test_limits_of_caption_metrics(metric: AnswerMetric) -> None:
    full = ["a red cat sits here.", "two dogs run far away", "the blue sea at night"]
    best = 10 if isinstance(metric, CIDEr) else 1
    assert of(metric, [text.upper() for text in full], [[text] for text in full]) == pytest.approx(best)
    targets = [
        ["nothing like that at all", "or this one"],
        ["something else entirely there"],
        ["quite other words here"],
    ]
    assert of(metric, ["unrelated caption of mine", "xx", "yy"], targets) == 0
    assert of(metric, ["", "", "!"], targets) == 0


def test_the_better_reference_counts_for_rouge_and_all_for_cider() -> None:
    other = [["one more sentence of five"]]
    alone = of(RougeL(), ["two dogs run far away", ""], [["two dogs run far away"], *other])
    assert of(RougeL(), ["two dogs run far away", ""], [["bad", "two dogs run far away"], *other]) == alone == 0.5
    both = CIDEr().statistics(["two dogs run far away", ""], [["bad", "two dogs run far away"], *other])
    assert both[0] == pytest.approx(5)


@pytest.mark.parametrize("metric", CAPTIONS, ids=lambda metric: type(metric).__name__)
def test_batches_and_means_of_resamples_give_the_score_of_those_samples(metric: AnswerMetric) -> None:
    predictions, targets = sentences(12, seed=3)
    whole = of(metric, predictions, targets)
    metric.reset()
    for start in range(0, 12, 5):
        metric.update(predictions[start : start + 5], targets[start : start + 5])
    assert float(metric.compute()) == pytest.approx(whole, rel=1e-12)
    values_NK = metric.statistics(predictions, targets)
    rows = torch.randint(0, 12, (2, 3, 12))
    scores = metric.combine(values_NK[rows].mean(-2))
    assert scores.shape == (2, 3)
    if not isinstance(metric, CIDEr):  # whose rarities stay those of all samples
        own = rows[1, 2].tolist()
        expected = of(metric, [predictions[i] for i in own], [targets[i] for i in own])
        assert float(scores[1, 2]) == pytest.approx(expected, rel=1e-12)


def test_instability_is_the_mean_entropy_of_answers() -> None:
    assert of(Instability(), [["cat", "dog", "cow", "(Z)", "??"]]) == pytest.approx(math.log(5), rel=1e-15)
    assert of(Instability(), [["cat"] * 5]) == 0
    share = [0.8, 0.2]
    steady = -sum(p * math.log(p) for p in share)
    assert of(Instability(), [["cat"] * 4 + ["dog"], ["cat"] * 5]) == pytest.approx(steady / 2)


def test_turns_by_hand() -> None:
    # accuracies 1, 1/2, 0 of 1, 2 and 1 questions: a line, one point a turn
    line: tuple[list[float], list[int]] = [1, 1, 0, 0], [0, 1, 1, 2]
    assert of(TurnCorrelation(turns=3), *line) == pytest.approx(-1)
    assert of(TurnSlope(turns=3), *line) == pytest.approx(-0.5)
    # 1 (asked twice), 0, 0.25 at turns 0, 1 and 3: centred products by hand; turn 2 was never asked
    bent: tuple[list[float], list[int]] = [1, 1, 0, 0.25], [0, 0, 1, 3]
    turn, accuracy = [-4 / 3, -1 / 3, 5 / 3], [7 / 12, -5 / 12, -1 / 6]
    product = sum(t * a for t, a in zip(turn, accuracy, strict=True))
    of_turn, of_accuracy = (sum(x * x for x in points) for points in (turn, accuracy))
    assert of(TurnSlope(turns=4), *bent) == pytest.approx(product / of_turn)
    assert of(TurnCorrelation(turns=5), *bent) == pytest.approx(product / math.sqrt(of_turn * of_accuracy))


def test_turns_without_a_trend() -> None:
    equal: tuple[list[float], list[int]] = [1, 0, 0] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert math.isnan(of(TurnCorrelation(turns=3), *equal))
    assert of(TurnSlope(turns=3), *equal) == pytest.approx(0)
    assert math.isnan(of(TurnSlope(turns=3), [1, 0], [1, 1]))
    with pytest.raises(ValueError, match="turn 3 is not one of 0 to 2"):
        TurnSlope(turns=3).update([1], [3])


def test_bad_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions, but 1 targets"):
        ChoiceAccuracy().update([1, 2], [1])
    for metric in (WordAccuracy(), *CAPTIONS):
        with pytest.raises(ValueError, match=r"target 1 must be a list of accepted texts, none empty; got 'one'"):
            metric.update(["one", "two"], [["one"], "one"])
        with pytest.raises(ValueError, match="target 0 must be"):
            metric.update(["one"], [["one", " "]])
    with pytest.raises(ValueError, match="sample 0 must be a list of answers"):
        Instability().update(["cat"])
    with warnings.catch_warnings(), pytest.raises(ValueError, match="CIDEr has no samples"):
        warnings.simplefilter("ignore")
        CIDEr().compute()
