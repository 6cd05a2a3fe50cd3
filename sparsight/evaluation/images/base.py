"""The one interface of metrics of generated images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor
from torchmetrics import Metric

from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.samples import Samples, SampleValues


class GenerationMetric(Metric, ABC):
    """A torchmetrics metric that is fed with samples and returns named values.

    States are summed or concatenated over processes, so that any number of them gives the value of one.
    """

    full_state_update = False
    is_differentiable = False
    needs_captions = False
    """Whether samples must carry captions."""
    needs_teacher = False
    """Whether the teacher's images and latents must be drawn beside the student's."""
    least_samples = 1
    """Samples below which there is no value."""
    of_samples: SampleValues | None = None
    """What the first value of the last ``compute`` was made of, where it is made of one value for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor: FeatureExtractor | None = None  # what describes images; metrics of a run share equal ones

    @property
    @abstractmethod
    def protocol(self) -> str:
        """What is computed, from which features and against what, for reports."""

    @abstractmethod
    def update(self, samples: Samples) -> None:
        """Add a batch of samples."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Values over all processes, by name."""

    def of(self, batches: Iterable[Samples]) -> dict[str, float]:
        """Values of these samples alone."""
        self.reset()
        for samples in batches:
            self.update(samples)
        return {name: float(value) for name, value in self.compute().items()}
