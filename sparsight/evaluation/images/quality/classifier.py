"""Inception score, and the like by any other classifier."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.wrappers.abstract import WrapperMetric

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.quality.logits import InceptionLogits
from sparsight.evaluation.images.samples import Samples
from sparsight.evaluation.images.statistics import Rows


class ClassifierScore(GenerationMetric, WrapperMetric):
    """exp E KL(p(y | image) || p(y)): sure of each image, unsure of all (Salimans et al., arXiv 1606.03498).

    With ``InceptionLogits`` it is the inception score, from 1 to 1008; with the logits of a DINOv2 classifier the DINO
    score of DeltaConvFusion. Mean and deviation over ``splits`` parts of the samples, shuffled by ``seed``, by
    torch-fidelity; torchmetrics' takes the order of processes and the global generator instead. It grows with the
    number of samples, and knows nothing of real images or captions.

    Args:
        extractor: Gives logits, not probabilities.
        splits: Parts; 10 is the field's.
        seed: Decides which samples are in a part; 2020 is torch-fidelity's.

    Raises:
        ValueError: There is no part.

    Examples:
        >>> values = ClassifierScore(extractor, splits=2).of(in_batches(drawn))  # extractor: gives logits
        >>> values["classifier_score_efficientnet_lite0"] >= 1
        True
    """

    higher_is_better = True
    extractor: FeatureExtractor

    def __init__(self, extractor: FeatureExtractor, splits: int = 10, seed: int = 2020) -> None:
        if splits < 1:
            raise ValueError(f"splits is {splits}; allowed: 1 or more")
        super().__init__()
        self.extractor, self.splits, self.seed = extractor, splits, seed
        self.least_samples = splits
        self.drawn = Rows(extractor.num_features)

    @property
    def protocol(self) -> str:
        """The classifier and the parts."""
        return f"logits of {self.extractor.name} ({self.extractor.preprocessing}), {self.splits} splits"

    def update(self, samples: Samples) -> None:
        """Add samples."""
        self.drawn.update(samples.features(self.extractor), samples.index)

    def compute(self) -> dict[str, Tensor]:
        """``is_<extractor>`` for Inception, else ``classifier_score_...``; with ``_std`` its deviation over parts.

        Raises:
            ConfigurationError: There are fewer samples than parts.
        """
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        logits_NK = self.drawn.compute()["features"]
        if len(logits_NK) < self.splits:
            raise ConfigurationError(f"{len(logits_NK)} samples are fewer than splits={self.splits}: lower it")
        found = isc_features_to_metric(logits_NK.cpu(), self.splits, True, self.seed)
        prefix = "is" if isinstance(self.extractor, InceptionLogits) else "classifier_score"
        name = f"{prefix}_{self.extractor.name}"
        keys = (KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD)
        mean, deviation = (torch.tensor(found[key], dtype=torch.float64, device=self.drawn.device) for key in keys)
        return {name: mean, f"{name}_std": deviation}

    def reset(self) -> None:
        """Forget the samples."""
        super().reset()
        self.drawn.reset()
