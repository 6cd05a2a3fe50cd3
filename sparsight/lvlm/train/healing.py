"""Healing beside the model as it was before layers left: its hidden states are what the rest is drawn to."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.load import Loading
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.train.unpruned import UnprunedModel, outputs_of, tuned_weights, unpruned_model


class Healing:
    """How much, and beside what, a model heals.

    Args:
        weight: Of the squared difference of the last layer's hidden states, 0 or more; 0 for none.
        source: Folder or hub id of the model that has all layers; none for a copy of this run's own.
        loading: How the model that heals is loaded, and that one is.

    Attributes:
        unpruned: That model, made when training begins.

    Raises:
        ValueError: The weight is 0, though ``source`` is given.
    """

    def __init__(self, weight: float, source: str | None, loading: Loading) -> None:
        if source is not None and weight == 0:
            raise ValueError(f"distill_from names {source}, but distill, the weight, is 0: set it, e.g. to 1.0")
        self.weight, self.source = weight, source
        kept = ("attn_implementation", "trust_remote_code")  # a revision is of the base alone
        self._options = {name: loading.options[name] for name in kept}
        self.unpruned: UnprunedModel | None = None

    def begin(self, model: Any, *, base: str, dtype: torch.dtype, loses_layers: bool, depth: int) -> None:
        """Make what the model is compared with, once.

        Args:
            model: The one that heals.
            base: What it was loaded from.
            dtype: Precision of what is never trained.
            loses_layers: Whether any may leave in this run.
            depth: Layers that it has.

        Raises:
            ConfigurationError: There is nothing to heal, or no model to compare with.
        """
        if self.weight == 0 or self.unpruned is not None:
            return
        self.unpruned = unpruned_model(self.source, base=base, student=model, dtype=dtype, **self._options)
        if not loses_layers and not self.is_on(depth):
            raise ConfigurationError(
                "distill heals the gaps of removed layers, but none has left or leaves: give `prune`, or in "
                "distill_from a model that has more layers"
            )

    def is_on(self, depth: int) -> bool:
        """Whether a model of so many layers has fewer than the one that its hidden states are compared with."""
        return self.unpruned is not None and depth < self.unpruned.depth

    def first_layer_leaves(self, model: Any, names: Iterable[str]) -> None:
        """Let the copy of this run's own model take over what was tuned until now."""
        if self.unpruned is not None and self.source is None:
            self.unpruned.take(tuned_weights(model, names))

    def watching(self, parts: Parts, depth: int) -> AbstractContextManager[list[Tensor]]:
        """Gathers the last layer's hidden states where they will be compared."""
        return outputs_of(parts.layers[-1]) if self.is_on(depth) else nullcontext([])

    @property
    def taken(self) -> dict[str, Tensor] | None:
        """What a checkpoint must hold of it."""
        return None if self.unpruned is None else self.unpruned.taken

    def take(self, weights: dict[str, Tensor] | None) -> None:
        """Go on from what a checkpoint held."""
        if self.unpruned is not None and weights is not None:
            self.unpruned.take(weights)
