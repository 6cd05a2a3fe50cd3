"""Metrics that are made of one value for each sample, most of them a mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_rows
from sparsight.evaluation.images.base import GenerationMetric
from sparsight.evaluation.images.samples import Combined, Samples, SampleValues


class SampleMean(GenerationMetric):
    """A value of every sample, and their mean or its root; equal for any split into batches and processes."""

    scores: list[Tensor]
    ids: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("ids", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all samples; a process without any still knows the shape that the others gather."""
        super().reset()
        self.scores.append(torch.empty(0, dtype=torch.float64, device=self.device))
        self.ids.append(torch.empty(0, dtype=torch.int64, device=self.device))

    def add(self, scores_B: Tensor, index_B: Tensor) -> None:
        """Add the values of samples.

        Raises:
            NonFiniteError: One is not finite; the message gives the ids.
        """
        check_rows({type(self).__name__: scores_B}, index_B, "samples")
        self.scores.append(scores_B.double())
        self.ids.append(index_B.to(scores_B.device))

    def mean(self, combined: Combined = "mean") -> Tensor:
        """The mean over all processes, or its root.

        Args:
            combined: Which of them.
        """
        scores_N, ids_N = dim_zero_cat(self.scores), dim_zero_cat(self.ids)
        order_N = ids_N.argsort(stable=True)
        self.of_samples = SampleValues(ids_N[order_N].cpu(), scores_N[order_N].cpu(), combined)
        mean = self.of_samples.values_N.mean().to(scores_N.device)
        return mean.sqrt() if combined == "root mean" else mean


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

    def mean(self, combined: Combined = "mean") -> Tensor:
        """The mean over all processes; warns of captions that were cut."""
        if self.truncated:
            rank_zero_warn(
                f"{self.title}: {int(self.truncated)} of {len(dim_zero_cat(self.ids))} captions have more than the "
                f"{self.max_tokens} tokens that the model reads; they were cut"
            )
        return super().mean(combined)
