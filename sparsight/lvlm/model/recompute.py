"""Gradient checkpointing that keeps the backward pass as short as what is trained allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@runtime_checkable
class Renamed(Protocol):
    """A model of a transformers that calls gradient checkpointing otherwise, and warns of its old name."""

    def activation_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """Recompute layers in the backward pass."""
        ...

    def activation_checkpointing_disable(self) -> None:
        """Keep their activations."""
        ...


def recompute_layers(model: PreTrainedModel) -> None:
    """Let decoder layers in train mode be recomputed in the backward pass; changes the model in place.

    transformers makes the embeddings require gradients besides, which checkpointing without reentrance does not need:
    with a frozen projector it would lead the backward pass through all layers below the lowest tuned one.
    """
    options = {"use_reentrant": False}
    if isinstance(model, Renamed):
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
    model.disable_input_require_grads()


def keep_activations(model: PreTrainedModel) -> None:
    """Undo ``recompute_layers``."""
    if isinstance(model, Renamed):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
