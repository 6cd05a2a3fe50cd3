"""Metrics of generated images (features, distances, agreement with captions and the teacher) and of answers."""

from sparsight.metrics.answers import AnswerMetric
from sparsight.metrics.base import GenerationMetric
from sparsight.metrics.bleu import BLEU
from sparsight.metrics.choices import ChoiceAccuracy, FormatHitRate, Instability, UnfinishedThoughts
from sparsight.metrics.cider import CIDEr
from sparsight.metrics.clip import CLIPFeatures, CLIPScore
from sparsight.metrics.extractor import FeatureExtractor
from sparsight.metrics.features import EfficientNetLite0Features, InceptionFeatures, TimmFeatures
from sparsight.metrics.fidelity import TeacherError, TeacherSimilarity
from sparsight.metrics.frechet import FrechetDistance
from sparsight.metrics.kernel import KernelDistance
from sparsight.metrics.lpips import TeacherLPIPS
from sparsight.metrics.reference import Reference
from sparsight.metrics.rouge import RougeL
from sparsight.metrics.samples import Samples, in_batches
from sparsight.metrics.turns import TurnCorrelation, TurnSlope
from sparsight.metrics.word_accuracy import KeyInformationAccuracy, WordAccuracy

__all__ = [
    "BLEU",
    "AnswerMetric",
    "CIDEr",
    "CLIPFeatures",
    "CLIPScore",
    "ChoiceAccuracy",
    "EfficientNetLite0Features",
    "FeatureExtractor",
    "FormatHitRate",
    "FrechetDistance",
    "GenerationMetric",
    "InceptionFeatures",
    "Instability",
    "KernelDistance",
    "KeyInformationAccuracy",
    "Reference",
    "RougeL",
    "Samples",
    "TeacherError",
    "TeacherLPIPS",
    "TeacherSimilarity",
    "TimmFeatures",
    "TurnCorrelation",
    "TurnSlope",
    "UnfinishedThoughts",
    "WordAccuracy",
    "in_batches",
]
