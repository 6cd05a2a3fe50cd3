"""Metrics that are a mean over samples, each of which is measured by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_rows
from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.samples import Samples


class SampleMean(GenerationMetric):
    """Sum and number of values, one of a sample; equal for any split into batches and processes."""

    score_sum: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("score_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, scores_B: Tensor, index_B: Tensor) -> None:
        """Add the values of samples.

        Raises:
            NonFiniteError: One is not finite; the message gives the ids.
        """
        check_rows({type(self).__name__: scores_B}, index_B, "samples")
        self.score_sum += scores_B.double().sum()
        self.count += len(scores_B)

    def mean(self) -> Tensor:
        """The mean over all processes."""
        return self.score_sum / self.count


class CaptionScore(SampleMean):
    """Mean of how well an image fits its caption, by a model that reads so many tokens.

    Attributes:
        title: What the score is called in messages.
        max_tokens: Tokens that a caption may have; longer ones are cut, and counted.
    """

    needs_captions = True
    higher_is_better = True
    title: str
    max_tokens: int
    truncated: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("truncated", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def rate(self, samples: Samples, captions: Sequence[str]) -> tuple[Tensor, int]:
        """Scores (B,), and how many captions were cut."""

    def update(self, samples: Samples) -> None:
        """Add images and their captions.

        Raises:
            ConfigurationError: There are no captions.
            NonFiniteError: Features or scores are not finite.
        """
        if samples.captions is None:
            raise ConfigurationError(
                f"the {self.title} needs captions: take them from the data, or give a list or a file of them"
            )
        scores_B, truncated = self.rate(samples, samples.captions)
        self.add(scores_B, samples.index)
        self.truncated += truncated

    def mean(self) -> Tensor:
        """The mean over all processes; warns of captions that were cut."""
        if self.truncated:
            rank_zero_warn(
                f"{self.title}: {int(self.truncated)} of {int(self.count)} captions have more than the "
                f"{self.max_tokens} tokens that the model reads; they were cut"
            )
        return super().mean()
