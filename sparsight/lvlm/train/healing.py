"""Healing beside the model as it was before layers left: to its hidden states and answers the rest is drawn."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.common.errors import ConfigurationError, require
from sparsight.lvlm.model.load import ModelLoading
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.train.unpruned import UnprunedModel, outputs_of, tuned_weights, unpruned_model


@dataclass(frozen=True)
class Healing:
    """How a model that loses layers is drawn to a teacher that has all of them, from the first removal on.

    All weights 0 heal by training alone, and spare the memory of the teacher.

    Args:
        hidden: Weight of the squared difference of the last layer's hidden states, relative to their size.
        logits: Weight of the Kullback-Leibler divergence, in nats an answer token, of the answers.
        layers: Weight of such a difference of hidden states at every layer that is left, their mean.
        teacher: Folder or hub id of the teacher: the base before an earlier run took layers out. If not given, it is
            this run's own model as it was, tuned so far, when the first layer left.

    Raises:
        ValueError: A weight is out of range, or all are 0, though there is a teacher.
    """

    hidden: float = 0.0
    logits: float = 0.0
    layers: float = 0.0
    teacher: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range, and a teacher that nothing is compared with."""
        for name, weight in (("hidden", self.hidden), ("logits", self.logits), ("layers", self.layers)):
            require(0 <= weight < math.inf, name, weight, "0 or more")
        if self.teacher is not None and not self.any:
            raise ValueError(
                f"teacher is {self.teacher}, but hidden, logits and layers, the weights, are 0: set one of them, e.g. "
                "hidden to 1.0"
            )

    @property
    def named(self) -> list[str]:
        """Names of the weights that are not 0."""
        weights = {"hidden": self.hidden, "logits": self.logits, "layers": self.layers}
        return [name for name, weight in weights.items() if weight > 0]

    @property
    def any(self) -> bool:
        """Whether anything is."""
        return bool(self.named)


class Healer:
    """Compares a model with what it was before layers left.

    Args:
        healing: How much, and beside what.
        loading: How the model that heals is loaded, and its teacher is.

    Attributes:
        unpruned: The teacher, made when training begins.
    """

    def __init__(self, healing: Healing, loading: ModelLoading) -> None:
        self.healing = healing
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
        if not self.healing.any or self.unpruned is not None:
            return
        self.unpruned = unpruned_model(self.healing.teacher, base=base, student=model, dtype=dtype, **self._options)
        if not loses_layers and not self.is_on(depth):
            raise ConfigurationError(
                "healing is for the gaps of removed layers, but none has left or leaves: give `prune`, or in "
                "healing.teacher a model that has more layers"
            )

    def is_on(self, depth: int) -> bool:
        """Whether a model of so many layers has fewer than the one that its hidden states are compared with."""
        return self.unpruned is not None and depth < self.unpruned.depth

    def first_layer_leaves(self, model: Any, names: Iterable[str]) -> None:
        """Let the copy of this run's own model take over what was tuned until now."""
        if self.unpruned is not None and self.healing.teacher is None:
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
                watched |= {depth - 1} if self.healing.hidden else set()
                watched |= set(range(depth)) - set(retired) if self.healing.layers else set()
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
        weights = self.healing
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
