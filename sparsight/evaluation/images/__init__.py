"""Metrics of generated images: features, distances, agreement with captions and with the teacher."""

from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.clip import CLIPFeatures, CLIPScore
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.features import (
    EfficientNetLite0Features,
    InceptionFeatures,
    TimmFeatures,
    TransformersFeatures,
)
from sparsight.evaluation.images.fidelity import TeacherError, TeacherSimilarity
from sparsight.evaluation.images.frechet import FrechetDistance
from sparsight.evaluation.images.kernel import KernelDistance
from sparsight.evaluation.images.lpips import TeacherLPIPS
from sparsight.evaluation.images.preference.clip import HPSFeatures, HPSv2, PickScore
from sparsight.evaluation.images.preference.image_reward import ImageReward
from sparsight.evaluation.images.quality.classifier import ClassifierScore
from sparsight.evaluation.images.quality.logits import ClassifierLogits, InceptionLogits
from sparsight.evaluation.images.quality.topiq import TOPIQ
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.samples import Samples, in_batches
from sparsight.evaluation.images.sets.gaussian import GaussianDistance
from sparsight.evaluation.images.sets.neighbours import DensityCoverage, PrecisionRecall
from sparsight.evaluation.images.sets.patches import PatchFrechetDistance

__all__ = [
    "TOPIQ",
    "CLIPFeatures",
    "CLIPScore",
    "ClassifierLogits",
    "ClassifierScore",
    "DensityCoverage",
    "EfficientNetLite0Features",
    "FeatureExtractor",
    "FrechetDistance",
    "GaussianDistance",
    "GenerationMetric",
    "HPSFeatures",
    "HPSv2",
    "ImageReward",
    "InceptionFeatures",
    "InceptionLogits",
    "KernelDistance",
    "PatchFrechetDistance",
    "PickScore",
    "PrecisionRecall",
    "Reference",
    "Samples",
    "TeacherError",
    "TeacherLPIPS",
    "TeacherSimilarity",
    "TimmFeatures",
    "TransformersFeatures",
    "in_batches",
]
