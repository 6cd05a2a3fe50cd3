"""Callbacks: what happens beside training."""

from callbacks.ema import TrainableEMA
from callbacks.export import ExportAtEnd
from callbacks.image_writer import ImageWriter
from callbacks.sample_grid import SampleGrid
from callbacks.throughput import Throughput

__all__ = ["ExportAtEnd", "ImageWriter", "SampleGrid", "Throughput", "TrainableEMA"]
