"""Gradient checkpointing that keeps the backward pass as short as what is trained allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel) -> None:
    """Let decoder layers in train mode be recomputed in the backward pass; changes the model in place.

    transformers makes the embeddings require gradients besides, which checkpointing without reentrance does not need:
    with a frozen projector it would lead the backward pass through all layers below the lowest tuned one.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()


def keep_activations(model: PreTrainedModel) -> None:
    """Undo :func:`recompute_layers`."""
    disable: Any = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
