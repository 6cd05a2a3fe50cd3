"""Whether all questions of a group are answered rightly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from sparsight.evaluation.texts.answers import AnswerMetric, check_pairs


class GroupAccuracy(AnswerMetric):
    """Share of groups of which every question is answered rightly, 0 to 1.

    MME's accuracy+ of the two questions about an image (Fu et al., arXiv 2306.13394), and MMBench's circular evaluation
    of one question with its options in every rotation (Liu et al., arXiv 2307.06281). All questions of a group must be
    in one call.
    """

    def __init__(self) -> None:
        super().__init__(width=2)

    def statistics(
        self, predictions: Sequence[int | None], targets: Sequence[int], groups: Sequence[Hashable]
    ) -> Tensor:
        """A question's share of a right group and of any group, (N, 2): a group weighs the same, however large it is.

        Args:
            predictions: Position of the chosen option; ``None``: none was recognised.
            targets: Right positions.
            groups: Name of the group of every question.
        """
        check_pairs(predictions, targets)
        check_pairs(predictions, groups)
        sizes = Counter(groups)
        wrong = {g for said, right, g in zip(predictions, targets, groups, strict=True) if said != right}
        rows = [((group not in wrong) / sizes[group], 1 / sizes[group]) for group in groups]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def combine(self, means: Tensor) -> Tensor:
        """Scores (...) of means of ``statistics``, (..., 2)."""
        return means[..., 0] / means[..., 1]
