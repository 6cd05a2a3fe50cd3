"""A score by what the model's answer becomes when a layer leaves some tokens as they are.

Shape legend: B batch, T tokens, C channels, N positions that are compared, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.answer_losses import IGNORED, answer_logits
from sparsight.lvlm.model.bypass import entering, leaving
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores.base import SeparateScore
from sparsight.lvlm.scores.loss import with_each_changed
from sparsight.lvlm.scores.tokens import CalibrationBatch, CalibrationSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FrozenTokens = Literal["image", "text"]


class LayerContribution(SeparateScore):
    """How far the next-token distribution moves when the layer leaves the chosen tokens unchanged (ShortV).

    Kullback-Leibler divergence, in nats, from the distribution of the whole model (arXiv 2504.00502). The other tokens
    pass the layer as before and still attend to the unchanged ones. Compared, with equal weight, are the positions that
    answer tokens are predicted from, or the last token of a sample where there are no answers.

    Args:
        tokens: Which tokens are left unchanged: ``image`` or ``text``.
    """

    def __init__(self, tokens: FrozenTokens = "image") -> None:
        if tokens not in get_args(FrozenTokens):
            raise ValueError(f"tokens is one of {', '.join(get_args(FrozenTokens))}; got {tokens!r}")
        self.tokens = tokens

    @property
    def name(self) -> str:
        """Tells the tokens."""
        return f"layer_contribution_{self.tokens}"

    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> list[float]:
        """See the class.

        Raises:
            ConfigurationError: The batches have labels, but no answers.
        """
        totals = torch.zeros(len(parts.layers), dtype=torch.float64)
        count = 0
        for batch in batches:
            unchanged_BT = batch.tokens.of_kind(self.tokens)

            def run(batch: CalibrationBatch = batch) -> Tensor:
                return answer_logits(model, batch.inputs, _compared(batch)).log_softmax(dim=-1)

            def changed(layer: int, unchanged_BT: Tensor = unchanged_BT) -> AbstractContextManager[None]:
                return tokens_unchanged(parts.layers[layer], unchanged_BT)

            whole_NV, others = with_each_changed(parts, range(len(parts.layers)), run, changed)
            totals += torch.stack([_divergence(whole_NV, other_NV) for other_NV in others])
            count += len(whole_NV)
        if not count:
            raise ConfigurationError("the calibration batches have no labelled answers to compare the model's words at")
        return (totals / count).tolist()


@contextmanager
def tokens_unchanged(layer: nn.Module, unchanged_BT: Tensor) -> Iterator[None]:
    """Let a layer return the chosen tokens as they came in."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        mixed_BTC = torch.where(unchanged_BT[..., None], entering(args, kwargs), leaving(output))
        return (mixed_BTC, *output[1:]) if isinstance(output, tuple) else mixed_BTC

    hook = layer.register_forward_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _compared(batch: CalibrationBatch) -> Tensor:
    """Positions whose logits are compared, (B, T)."""
    if batch.labels_BT is None:
        return batch.tokens.last_BT
    return F.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED) != IGNORED


def _divergence(whole_NV: Tensor, other_NV: Tensor) -> Tensor:
    return F.kl_div(other_NV, whole_NV, log_target=True, reduction="sum").cpu().double()
