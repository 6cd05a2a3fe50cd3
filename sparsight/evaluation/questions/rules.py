"""The rules by which benchmarks are scored: what is measured of the answers to their questions, by each method.

By likelihood a choice is a choice, whatever the benchmark; by generation each has its own rule. What a written answer
chose is settled where it is read (``sparsight.evaluation.reform_eval.answer``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from sparsight.evaluation.questions.yes_no import mme_yes_no, pope_yes_no
from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.boxes import BoxAccuracy, BoxIoU
from sparsight.evaluation.texts.choices import ChoiceAccuracy
from sparsight.evaluation.texts.groups import GroupAccuracy
from sparsight.evaluation.texts.open_answers import OpenAnswerAccuracy
from sparsight.evaluation.texts.sample_mean import SampleMean
from sparsight.evaluation.texts.vqa import ExactMatch, VQAAccuracy
from sparsight.evaluation.texts.yes_no import YesF1, YesPrecision, YesRecall, YesShare

Answer = Mapping[str, Any]


class Measure(NamedTuple):
    """A metric, and what of an answer it is given."""

    metric: Callable[[], AnswerMetric]
    columns: tuple[Callable[[Answer], Any], ...]


@dataclass(frozen=True)
class Rule:
    """How a benchmark is scored.

    Args:
        headline: What stands for the benchmark in means: a share, 0 to 1.
        measures: By name, what is measured of written answers.
        chosen: A written answer is a choice, and weighed ones are measured in the same ways; otherwise weighed ones
            have an accuracy.
        sums: Names of sums over categories of 100 times each of ``summed``, with the categories of each; none is all.
        summed: Names of measures.
        read: Gives the position of the option that a written answer means, where options are not shown.
    """

    headline: str
    measures: Mapping[str, Measure]
    chosen: bool = True
    sums: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    read: Callable[[str], int | None] | None = None

    def main(self, method: str) -> str:
        """Name of the headline by a method."""
        return self.headline if self.chosen or method == "generation" else "accuracy"

    def measured(self, answers: Sequence[Answer], method: str) -> dict[str, Measure]:
        """What is measured of answers of one task by one method."""
        own = self.chosen or method == "generation"
        found = dict(self.measures) if own else {"accuracy": ACCURACY}
        return found | {"accuracy_by_token": BY_TOKEN} if method == "likelihood" else found


POINTS = " in points"  # ends the name of a recorded score that is no share, such as marks from 1 to 5


class RecordedRule(Rule):
    """Scores that another program gave to every sample, under its own names.

    The first that is a share stands for the task, as ``recorded``.
    """

    def measured(self, answers: Sequence[Answer], method: str) -> dict[str, Measure]:
        """The scores that the answers hold."""
        names = list(dict.fromkeys(name for answer in answers for name in answer["recorded"]))
        shares = [name for name in names if not name.endswith(POINTS)]
        found = {name: Measure(SampleMean, (_recorded(name),)) for name in names}
        return ({self.headline: found[shares[0]]} if shares else {}) | found


def _recorded(name: str) -> Callable[[Answer], float | None]:
    return lambda answer: answer["recorded"].get(name)


def _choice_or_open(answer: Answer) -> float:
    """Whether an answer is right, be it a choice or free."""
    if "choice" in answer:
        return float(answer["choice"] == answer["answer"])
    return float(OpenAnswerAccuracy().statistics([answer["text"]], [answer["references"]]))


_CHOSEN = (itemgetter("choice"), itemgetter("answer"))
_WRITTEN = (itemgetter("text"), itemgetter("references"))
ACCURACY = Measure(ChoiceAccuracy, _CHOSEN)
BY_TOKEN = Measure(ChoiceAccuracy, (itemgetter("choice_by_token"), itemgetter("answer")))
BY_GROUP = Measure(GroupAccuracy, (*_CHOSEN, itemgetter("dialogue")))
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

RULES: dict[str, Rule] = {
    "choice": Rule("accuracy", {"accuracy": ACCURACY}),
    "circular": Rule("circular_accuracy", {"circular_accuracy": BY_GROUP, "accuracy": ACCURACY}),
    "yes_no": Rule(
        "f1",
        {
            "f1": Measure(YesF1, _CHOSEN),
            "accuracy": ACCURACY,
            "precision": Measure(YesPrecision, _CHOSEN),
            "recall": Measure(YesRecall, _CHOSEN),
            "yes_share": Measure(YesShare, _CHOSEN),
        },
        read=pope_yes_no,
    ),
    "yes_no_pairs": Rule(
        "accuracy",
        {"accuracy": ACCURACY, "accuracy_plus": BY_GROUP},
        sums={"mme_score": None, "mme_perception": PERCEPTION, "mme_cognition": COGNITION},
        summed=("accuracy", "accuracy_plus"),
        read=mme_yes_no,
    ),
    "vqa": Rule("vqa_accuracy", {"vqa_accuracy": Measure(VQAAccuracy, _WRITTEN)}, chosen=False),
    "exact": Rule("exact_match", {"exact_match": Measure(ExactMatch, _WRITTEN)}, chosen=False),
    "choice_or_open": Rule("accuracy", {"accuracy": Measure(SampleMean, (_choice_or_open,))}, chosen=False),
    "boxes": Rule(
        "box_accuracy",
        {"box_accuracy": Measure(BoxAccuracy, _WRITTEN), "box_iou": Measure(BoxIoU, _WRITTEN)},
        chosen=False,
    ),
    "recorded": RecordedRule("recorded", {}, chosen=False),
}
