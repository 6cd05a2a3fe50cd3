"""Squared errors of candidates by timestep bucket: around a site's last projection, and in the denoiser's prediction.

Shape legend: B batch, h heads, N tokens, d channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsight.diffusion.analyze.attention.sums import BucketSums


class ErrorSums:
    """Squared errors and what they are measured by, added up over the samples of each bucket."""

    def __init__(self, buckets: int) -> None:
        self._error, self._power = BucketSums(buckets), BucketSums(buckets)

    def add(self, candidate: Tensor, teacher: Tensor, bucket_B: Tensor, *, heads: bool = False) -> None:
        """Add what a candidate gave where the teacher gave something else, both (B, ...), or (B, h, ...) by heads."""
        first = 2 if heads else 1
        error = (candidate.double() - teacher.double()).square().flatten(first).sum(-1)
        self._error.add(error, bucket_B)
        self._power.add(teacher.double().square().flatten(first).sum(-1), bucket_B)

    def relative(self, bucket: int | None = None, head: int | None = None) -> float | None:
        """Relative L2 error of a bucket or of all, of a head or of all; none where nothing was measured."""
        sums = [self._of(each, bucket, head) for each in (self._error, self._power)]
        error, power = sums
        if error is None or power is None:
            return None
        return math.sqrt(error / power) if power > 0 else (0.0 if error == 0 else math.inf)

    def square(self) -> float | None:
        """Squared relative error over all buckets."""
        relative = self.relative()
        return None if relative is None else relative**2

    @staticmethod
    def _of(sums: BucketSums, bucket: int | None, head: int | None) -> float | None:
        chosen = range(len(sums.count)) if bucket is None else [bucket]
        totals = [total for each in chosen if (total := sums.total(each)) is not None]
        if not totals:
            return None
        return float(torch.stack([total.sum() if head is None else total[head] for total in totals]).sum())


@dataclass(frozen=True)
class CandidateErrors:
    """Of one candidate at one site.

    Attributes:
        before: Of the image's tokens in front of the last projection, by head; nothing for what has no heads.
        after: Of the site's output.
        prediction: Of the denoiser's, with this site alone changed.
    """

    before: ErrorSums
    after: ErrorSums
    prediction: ErrorSums

    @classmethod
    def empty(cls, buckets: int) -> CandidateErrors:
        """Nothing yet."""
        return cls(*(ErrorSums(buckets) for _ in range(3)))
