"""Answers of all kinds and their scores, for one process or several."""

from __future__ import annotations

from sparsight.evaluation.texts import BLEU, ChoiceAccuracy, CIDEr, Instability, RougeL, TurnSlope, WordAccuracy

OUTPUTS = ["a red cat sits here", "two dogs run away", "no idea", "", "the blue car on a street"]
ACCEPTED = [
    ["a red cat sits there", "one cat"],
    ["two dogs run", "dogs that run far away"],
    ["a tree"],
    ["the sea at night"],
    ["a blue car on the street", "car"],
]
COUNT = len(OUTPUTS)
CHOICES: list[int | None] = [0, 2, None, 1, 3]
RIGHT = [0, 2, 1, 0, 3]


def score(own: range) -> dict[str, float]:
    """Scores of all processes' samples, of which this one has these."""
    values = {}
    for metric in (BLEU(order=2), CIDEr(), RougeL(), WordAccuracy()):
        for i in own:
            metric.update([OUTPUTS[i]], [ACCEPTED[i]])
        values[type(metric).__name__] = float(metric.compute())
    choices, instability, slope = ChoiceAccuracy(), Instability(), TurnSlope(turns=3)
    for i in own:
        choices.update([CHOICES[i]], [RIGHT[i]])
        instability.update([OUTPUTS[: i + 1]])
        slope.update([CHOICES[i] == RIGHT[i]], [i % 3])
    return values | {type(m).__name__: float(m.compute()) for m in (choices, instability, slope)}
