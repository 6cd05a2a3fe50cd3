"""Logits and losses at the positions of answers alone.

Most positions of a batch are prompt, image or padding. Heads are large (a fifth of a 135 M model), so the others are
left out before the head, not after it.

Shape legend: B batch, T tokens, N answer tokens of the batch, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
_LABELS: ContextVar[Tensor | None] = ContextVar("labels", default=None)


def labels_now() -> Tensor | None:
    """Labels (B, T) of the pass that is being computed, which models do not get; none outside ``answer_losses``."""
    return _LABELS.get()


def answer_logits(model: PreTrainedModel, inputs: Mapping[str, Any], wanted_BT: Tensor) -> Tensor:
    """Logits that the model gives after the chosen tokens: float32 (N, V), rows in the order of the batch.

    What the model does with its logits (scaling, soft capping) is done to them.

    Args:
        model: Any transformers model with output embeddings.
        inputs: Keyword arguments of its forward pass, without labels.
        wanted_BT: Positions, as bools.

    Raises:
        RuntimeError: The model does not call its head with a hidden state for every token.
    """
    return forward(model, wanted_BT, use_cache=False, **inputs).logits[0].float()


def forward(model: PreTrainedModel, wanted_BT: Tensor, **inputs: Any) -> Any:
    """The model's output with logits (1, N, V) of the chosen positions alone; otherwise as ``answer_logits``."""
    return _with_head_given(lambda hidden_BTC: hidden_BTC[wanted_BT].unsqueeze(0), model, wanted_BT, **inputs)


def _with_head_given(
    given: Callable[[Tensor], Tensor], model: PreTrainedModel, wanted_BT: Tensor, **inputs: Any
) -> Any:
    """The model's output, whose head gets this of its hidden states (B, T, C)."""
    head: nn.Module = model.get_output_embeddings()
    seen: list[tuple[int, ...]] = []

    def give(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(tuple(arguments[0].shape[:-1]))
        return (given(arguments[0]), *arguments[1:])

    hook = head.register_forward_pre_hook(give)
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    if set(seen) != {tuple(wanted_BT.shape)}:  # once a pass, of which recipes may add some
        raise RuntimeError(f"{type(model).__name__} called its head with {seen}, expected {tuple(wanted_BT.shape)}")
    return output


def answer_losses(model: PreTrainedModel, inputs: Mapping[str, Any], labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of every labelled token, given all tokens before it.

    Args:
        model: The model.
        inputs: Keyword arguments of its forward pass.
        labels_BT: Token ids, ``IGNORED`` where there is nothing to learn.

    Returns:
        Losses (N) in the order of the batch, and the sample (N) that each belongs to.
    """
    losses_N, _, sample_N = answers(model, inputs, labels_BT)
    return losses_N, sample_N


def answers(model: PreTrainedModel, inputs: Mapping[str, Any], labels_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N) as ``answer_losses`` gives them, logits (N, V), float32, of the same tokens, and their samples (N)."""
    next_BT = _next(labels_BT)
    wanted_BT = next_BT != IGNORED
    told = _LABELS.set(labels_BT)
    try:
        logits_NV = answer_logits(model, inputs, wanted_BT)
    finally:
        _LABELS.reset(told)
    losses_N = F.cross_entropy(logits_NV, next_BT[wanted_BT], reduction="none")
    return losses_N, logits_NV, torch.nonzero(wanted_BT)[:, 0]


def answer_states(model: PreTrainedModel, inputs: Mapping[str, Any], labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What the head would make the logits of answers of, which are not computed: states (N, C), and the tokens (N).

    Errors are those of ``answer_logits``.
    """
    next_BT = _next(labels_BT)
    wanted_BT = next_BT != IGNORED
    states: list[Tensor] = []

    def take(hidden_BTC: Tensor) -> Tensor:
        states.append(hidden_BTC[wanted_BT])
        return hidden_BTC[:1, :0]

    _with_head_given(take, model, wanted_BT, use_cache=False, **inputs)
    return states[0], next_BT[wanted_BT]


def _next(labels_BT: Tensor) -> Tensor:
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)  # the logits of a token speak of the next one
