"""Metrics of what an image-text model answers."""

from sparsight.evaluation.texts.answers import AnswerMetric
from sparsight.evaluation.texts.bleu import BLEU
from sparsight.evaluation.texts.boxes import BoxAccuracy, BoxIoU
from sparsight.evaluation.texts.choices import ChoiceAccuracy, FormatHitRate, Instability, UnfinishedThoughts
from sparsight.evaluation.texts.cider import CIDEr
from sparsight.evaluation.texts.groups import GroupAccuracy
from sparsight.evaluation.texts.open_answers import OpenAnswerAccuracy
from sparsight.evaluation.texts.rouge import RougeL
from sparsight.evaluation.texts.sample_mean import SampleMean
from sparsight.evaluation.texts.turns import TurnCorrelation, TurnSlope
from sparsight.evaluation.texts.vqa import ExactMatch, VQAAccuracy
from sparsight.evaluation.texts.word_accuracy import KeyInformationAccuracy, WordAccuracy
from sparsight.evaluation.texts.yes_no import YesF1, YesPrecision, YesRecall, YesShare

__all__ = [
    "BLEU",
    "AnswerMetric",
    "BoxAccuracy",
    "BoxIoU",
    "CIDEr",
    "ChoiceAccuracy",
    "ExactMatch",
    "FormatHitRate",
    "GroupAccuracy",
    "Instability",
    "KeyInformationAccuracy",
    "OpenAnswerAccuracy",
    "RougeL",
    "SampleMean",
    "TurnCorrelation",
    "TurnSlope",
    "UnfinishedThoughts",
    "VQAAccuracy",
    "WordAccuracy",
    "YesF1",
    "YesPrecision",
    "YesRecall",
    "YesShare",
]
