"""Healing beside the model as it was before layers left: to its hidden states and answers the rest is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.load import Loading
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.train.unpruned import UnprunedModel, outputs_of, tuned_weights, unpruned_model


@dataclass(frozen=True)
class HealingWeights:
    """What of a model is drawn to what it was before layers left, each 0 for not at all.

    Args:
        hidden: Of the last layer's hidden states.
        logits: Of what it answers.
        layers: Of the hidden states of every layer that is left, their mean.
    """

    hidden: float = 0.0
    logits: float = 0.0
    layers: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is."""
        return max(self.hidden, self.logits, self.layers) > 0


class Healing:
    """How much, and beside what, a model heals.

    Args:
        weights: Of the terms of the loss, 0 or more.
        source: Folder or hub id of the model that has all layers; none for a copy of this run's own.
        loading: How the model that heals is loaded, and that one is.

    Attributes:
        unpruned: That model, made when training begins.

    Raises:
        ValueError: All weights are 0, though ``source`` is given.
    """

    def __init__(self, weights: HealingWeights, source: str | None, loading: Loading) -> None:
        if source is not None and not weights.any:
            raise ValueError(
                f"distill_from names {source}, but distill, the weight, is 0: set it, or distill_logits or "
                "distill_layers, e.g. to 1.0"
            )
        self.weights, self.source = weights, source
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
        if not self.weights.any or self.unpruned is not None:
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

    @contextmanager
    def watching(self, parts: Parts, retired: Collection[int]) -> Iterator[dict[int, list[Tensor]]]:
        """Gathers hidden states of the layers where they will be compared, by the layers' numbers, call by call.

        Args:
            parts: Of the model that heals.
            retired: Layers that are passed by.
        """
        depth = len(parts.layers)
        with ExitStack() as stack:
            watched: set[int] = set()
            if self.is_on(depth - len(retired)):
                watched |= {depth - 1} if self.weights.hidden else set()
                watched |= set(range(depth)) - set(retired) if self.weights.layers else set()
            yield {number: stack.enter_context(outputs_of(parts.layers[number])) for number in sorted(watched)}

    def terms(
        self,
        inputs: Mapping[str, Any],
        labels_BT: Tensor,
        *,
        watched: Mapping[int, Sequence[Tensor]],
        logits_NV: Tensor | None,
    ) -> dict[str, tuple[float, Tensor]]:
        """Terms of the loss by name, each with its weight.

        Args:
            inputs: Arguments of the forward pass.
            labels_BT: Token ids, -100 where there is no answer.
            watched: What ``watching`` gathered.
            logits_NV: What the model gives at answers; needed where logits are compared.
        """
        assert self.unpruned is not None
        weights = self.weights
        found = self.unpruned.compared(
            inputs,
            labels_BT,
            hidden={number: states[-1] for number, states in watched.items()},
            last=bool(weights.hidden),
            logits_NV=logits_NV if weights.logits else None,
        )
        terms: dict[str, tuple[float, Tensor]] = {}
        if weights.hidden:
            terms["hidden_difference"] = weights.hidden, found.differences[max(found.differences)]
        if weights.layers:
            terms["layers_difference"] = weights.layers, torch.stack([*found.differences.values()]).mean()
        if found.divergence is not None:
            terms["answers_divergence"] = weights.logits, found.divergence
        return terms

    @property
    def taken(self) -> dict[str, Tensor] | None:
        """What a checkpoint must hold of it."""
        return None if self.unpruned is None else self.unpruned.taken

    def take(self, weights: dict[str, Tensor] | None) -> None:
        """Go on from what a checkpoint held."""
        if self.unpruned is not None and weights is not None:
            self.unpruned.take(weights)
