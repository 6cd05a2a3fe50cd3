"""Metrics of what an image-text model answers."""

from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.bleu import BLEU
from sparsight.evaluation.texts.choices import ChoiceAccuracy, FormatHitRate, Instability, UnfinishedThoughts
from sparsight.evaluation.texts.cider import CIDEr
from sparsight.evaluation.texts.rouge import RougeL
from sparsight.evaluation.texts.turns import TurnCorrelation, TurnSlope
from sparsight.evaluation.texts.word_accuracy import KeyInformationAccuracy, WordAccuracy

__all__ = [
    "BLEU",
    "AnswerMetric",
    "CIDEr",
    "ChoiceAccuracy",
    "FormatHitRate",
    "Instability",
    "KeyInformationAccuracy",
    "RougeL",
    "TurnCorrelation",
    "TurnSlope",
    "UnfinishedThoughts",
    "WordAccuracy",
]
