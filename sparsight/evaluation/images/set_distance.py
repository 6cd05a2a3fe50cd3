"""What distances between a set of samples and a set of reference images have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_rows
from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.reference import Reference, as_told, load_reference, save_reference
from sparsight.evaluation.images.samples import Samples

Statistics = dict[str, Tensor]
Distance = TypeVar("Distance", bound="SetDistance")


class SetDistance(GenerationMetric, WrapperMetric):
    """Distance of all samples to all reference images, under a feature extractor.

    Statistics of the reference come from a file, or from images given to ``update_reference``; they stay when the
    metric is reset.

    Args:
        extractor: Describes images.
        reference: File of reference statistics: read if it is there, written once they are known if it is not.
        suffix: Ends the logged names, where two distances of a run would have the same.

    Raises:
        ValueError: The file was made from other images, or with another extractor.
    """

    higher_is_better = False
    extractor: FeatureExtractor
    kind: str
    """What is kept of a set; files of another kind are refused."""

    def __init__(
        self, extractor: FeatureExtractor, reference: Reference | None = None, suffix: str | None = None
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.reference = reference
        self.suffix = f"_{suffix}" if suffix else ""
        self.drawn, self.real = self.statistics(), self.statistics()
        self._known: Statistics | None = None
        self._size: str | None = None
        self._prepared: dict[str, str] = {}
        self._told: dict[str, str] | None = None  # by the file
        if reference is not None and reference.exists:
            self._known, self._told = load_reference(reference, self._made_from(reference))
            self._size = self._told["size"]

    @abstractmethod
    def statistics(self) -> Metric:
        """A metric that gathers features of images and returns what is kept of them."""

    @abstractmethod
    def distance(self, drawn: Statistics, reference: Statistics) -> dict[str, Tensor]:
        """The distance between two sets, by name."""

    def views(self, samples: Samples) -> Sequence[Samples]:
        """What of images is described: they as a whole, unless a subclass says otherwise."""
        return [samples]

    @property
    def protocol(self) -> str:
        """Extractor and reference."""
        count = "unknown" if self._known is None else int(self._known["count"])
        dataset = "" if self.reference is None else f" of {self.reference.dataset}"
        return f"{self.extractor.name} features ({self.extractor.preprocessing}), against {count} images{dataset}"

    @property
    def wants_reference(self) -> bool:
        """Whether reference images must still be given."""
        return self._known is None

    def prepared_by(self, steps: Mapping[str, Any]) -> None:
        """Tell how images of the data get the size that they have here; their file of statistics tells it on.

        Args:
            steps: Nested plain data; ``transform`` is there if the data has images, and counts unless the reference
                names another.

        Raises:
            ConfigurationError: The file was made from images that were prepared otherwise, or is to be.
        """
        self._prepared = as_told(steps)
        if self.reference is None:
            return
        if self._told is None:
            self.reference.check_prepared(self._prepared)
        else:
            named = self.reference.transform is not None  # and compared when the file was read
            counts = {name: step for name, step in steps.items() if not (named and name == "transform")}
            self.reference.check_told(self._told, as_told(counts))

    def forget_reference(self) -> None:
        """Start the reference anew, unless it was read from a file."""
        self.real.reset()
        if self.reference is None:
            self._known = self._size = None

    def update_reference(self, images: Tensor, index: Tensor) -> None:
        """Add reference images in [0, 1], (B, C, H, W), with ids (B,) that occur once over all processes.

        Raises:
            ValueError: They are not of one size, or the reference is known already.
            NonFiniteError: Images or features are not finite; the message gives the ids.
        """
        if self._known is not None:
            raise ValueError("the reference is complete: it was read from a file, or a distance was computed already")
        self._check_size(images, "reference images")
        check_rows({"pixels": images}, index, "reference images")
        for view in self.views(Samples(images, index)):
            features_BF = self.extractor(view.pixels)
            check_rows({f"{self.extractor.name} features": features_BF}, index, "reference images")
            self.real.update(features_BF, index)

    def update(self, samples: Samples) -> None:
        """Add samples.

        Raises:
            ConfigurationError: They are of another size than the reference.
        """
        self._check_size(samples.images, "samples")
        for view in self.views(samples):
            self.drawn.update(view.features(self.extractor), view.index)

    def complete_reference(self) -> Statistics:
        """Statistics of all reference images of all processes; the first call writes their file, if there is to be one.

        Raises:
            ConfigurationError: There are not as many images as the file is to hold.
        """
        if self._known is None:
            known = {name: value.clone() for name, value in self.real.compute().items()}
            if self.reference is not None:
                self.reference.check_count(known)
                self._told = self._made_from(self.reference) | self._prepared | {"size": str(self._size)}
                if not dist.is_initialized() or dist.get_rank() == 0:
                    save_reference(self.reference, known, self._told)
                    rank_zero_info(f"reference: wrote {self.kind} of {known['count']} images to {self.reference.file}")
            self._known = known
            self.real.reset()
        return self._known

    def compute(self) -> dict[str, Tensor]:
        """The distance; completes the reference."""
        reference = {name: value.to(self.drawn.device) for name, value in self.complete_reference().items()}
        values = self.distance(self.drawn.compute(), reference)
        return {name + self.suffix: value for name, value in values.items()}

    def reset(self) -> None:
        """Forget the samples, keep the reference."""
        super().reset()
        self.drawn.reset()

    def with_reference(self: Distance, batches: Iterable[Samples]) -> Distance:
        """This metric, once it has been given the reference images of these batches."""
        for samples in batches:
            self.update_reference(samples.images, samples.index)
        return self

    def _made_from(self, reference: Reference) -> dict[str, str]:
        return {
            "format": "sparsight reference 1",
            "dataset": reference.dataset,
            "kind": self.kind,
            "extractor": f"{self.extractor.name}, {self.extractor.preprocessing}",
            "extractor_hash": self.extractor.identity,
        }

    def _check_size(self, images: Tensor, what: str) -> None:
        size = f"{images.shape[-2]}x{images.shape[-1]}"
        if self._size not in (None, size):
            raise ConfigurationError(
                f"{what} of {size} pixels, but {self._size} before or in the reference file: bring all to one size "
                "(compare_size), it decides the distance"
            )
        self._size = size
