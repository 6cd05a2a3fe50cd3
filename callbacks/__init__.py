"""Callbacks: what happens beside training."""

from callbacks.ema import TrainableEMA
from callbacks.export import ExportAtEnd
from callbacks.generation_metrics import GenerationMetrics
from callbacks.geneval import GenEvalImages
from callbacks.image_writer import ImageWriter
from callbacks.layer_rotation import LayerRotation
from callbacks.pruning_schedule import PruningSchedule
from callbacks.reform_eval_report import ReformEvalReport
from callbacks.sample_grid import SampleGrid
from callbacks.throughput import Throughput
from sparsight.common.training.parameter_summary import ParameterSummary
from sparsight.common.training.progress.run_progress import RunProgress

__all__ = [
    "ExportAtEnd",
    "GenEvalImages",
    "GenerationMetrics",
    "ImageWriter",
    "LayerRotation",
    "ParameterSummary",
    "PruningSchedule",
    "ReformEvalReport",
    "RunProgress",
    "SampleGrid",
    "Throughput",
    "TrainableEMA",
]
