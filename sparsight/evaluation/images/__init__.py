"""Metrics of generated images: features, distances, agreement with captions and with the teacher."""

from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.clip import CLIPFeatures, CLIPScore
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.features import EfficientNetLite0Features, InceptionFeatures, TimmFeatures
from sparsight.evaluation.images.fidelity import TeacherError, TeacherSimilarity
from sparsight.evaluation.images.frechet import FrechetDistance
from sparsight.evaluation.images.kernel import KernelDistance
from sparsight.evaluation.images.lpips import TeacherLPIPS
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.samples import Samples, in_batches
from sparsight.evaluation.images.sets.gaussian import GaussianDistance
from sparsight.evaluation.images.sets.neighbours import DensityCoverage, PrecisionRecall
from sparsight.evaluation.images.sets.patches import PatchFrechetDistance

__all__ = [
    "CLIPFeatures",
    "CLIPScore",
    "DensityCoverage",
    "EfficientNetLite0Features",
    "FeatureExtractor",
    "FrechetDistance",
    "GaussianDistance",
    "GenerationMetric",
    "InceptionFeatures",
    "KernelDistance",
    "PatchFrechetDistance",
    "PrecisionRecall",
    "Reference",
    "Samples",
    "TeacherError",
    "TeacherLPIPS",
    "TeacherSimilarity",
    "TimmFeatures",
    "in_batches",
]
