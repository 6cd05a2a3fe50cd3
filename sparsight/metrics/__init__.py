"""Metrics of generated images: features, distances to real images, agreement with captions and with the teacher."""

from sparsight.metrics.base import GenerationMetric
from sparsight.metrics.clip import CLIPFeatures, CLIPScore
from sparsight.metrics.extractor import FeatureExtractor
from sparsight.metrics.features import EfficientNetLite0Features, InceptionFeatures, TimmFeatures
from sparsight.metrics.fidelity import TeacherError, TeacherSimilarity
from sparsight.metrics.frechet import FrechetDistance
from sparsight.metrics.kernel import KernelDistance
from sparsight.metrics.lpips import TeacherLPIPS
from sparsight.metrics.reference import Reference
from sparsight.metrics.samples import Samples, in_batches

__all__ = [
    "CLIPFeatures",
    "CLIPScore",
    "EfficientNetLite0Features",
    "FeatureExtractor",
    "FrechetDistance",
    "GenerationMetric",
    "InceptionFeatures",
    "KernelDistance",
    "Reference",
    "Samples",
    "TeacherError",
    "TeacherLPIPS",
    "TeacherSimilarity",
    "TimmFeatures",
    "in_batches",
]
