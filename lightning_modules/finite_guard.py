"""The look at a step's losses and gradients before the optimiser uses them, with which all processes agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.amp import GradScaler

from sparsight.common.finite import NonFiniteError, all_finite, broken_rows, listed, not_finite, samples
from sparsight.common.training.processes import everywhere, summed

Noted = tuple[dict[str, Tensor], Tensor]
"""Loss terms of a batch, and its sample ids (B,)."""


class FiniteGuard:
    """Decides whether an optimiser step is taken: only if losses and gradients of all processes are finite.

    Args:
        allowed: How many steps may be left out in a run before it ends.

    Attributes:
        skipped: How many were left out so far.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped = 0
        self._noted: list[Noted] = []
        self._batch: Mapping[str, Any] = {}

    def note(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Remember the loss terms of a batch until the step that uses them; several where gradients accumulate."""
        self._noted.append(({name: term.detach() for name, term in terms.items()}, batch["index"]))
        self._batch = batch

    def may_step(
        self,
        parameters: Sequence[Tensor],
        *,
        named: Callable[[], dict[str, Tensor]],
        where: str,
        scaler: GradScaler | None,
    ) -> bool:
        """Whether the step may be taken; one wait for the device.

        A gradient scaler leaves out steps whose scaled gradients overflow, and lowers its scale: that is no error
        before the scale is down at 1.

        Args:
            parameters: What the optimiser trains, with gradients.
            named: Gives these parameters by name, for messages.
            where: Step and stage, for messages.
            scaler: That of fp16 training.

        Raises:
            NonFiniteError: Something is not finite, and no further step may be left out.
        """
        noted, self._noted = self._noted, []
        batch, self._batch = self._batch, {}
        gradients = [p.grad for p in parameters if p.grad is not None]
        terms = [term for of_batch, _ in noted for term in of_batch.values()]
        device = parameters[0].device
        bad = torch.stack([~all_finite(tensors).to(device) for tensors in (terms, gradients)])
        bad_terms, bad_gradients = summed(bad.int()).tolist()
        if not bad_terms and not bad_gradients:
            return True
        if bad_gradients and not bad_terms and scaler is not None and scaler.get_scale() > 1:
            return False  # the scaler finds the same and passes over it
        by_name = named()
        found = [finding for process in everywhere(_findings(noted, batch, by_name)) for finding in process]
        text = f"{where}: {'; '.join(dict.fromkeys(found))}. Nothing was changed by this step"
        spoilt = any(everywhere(bool(not_finite(by_name))))
        if spoilt or self.skipped >= self.allowed:
            raise NonFiniteError(f"{text}. {_remedy(spoilt, self.allowed)}")
        self.skipped += 1
        rank_zero_warn(f"{text}: it is left out, number {self.skipped} of at most {self.allowed} (max_skipped_steps)")
        return False


def _findings(noted: Sequence[Noted], batch: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> list[str]:
    spoilt = not_finite(parameters)
    if spoilt:
        return [f"{listed(spoilt)} had become NaN or infinite by the steps before"]
    found = []
    for terms, index in noted:
        names = not_finite(terms)
        if names:
            ids = listed(index.tolist())
            found.append(f"loss term {listed(names)} of samples {ids} is NaN or infinite{_in_data(batch, index)}")
    if not found:
        names = not_finite({name: p.grad for name, p in parameters.items() if p.grad is not None})
        ids = listed([number for _, index in noted for number in index.tolist()])
        found = [f"gradient of {listed(names)} in a batch of samples {ids} is NaN or infinite"] if names else []
    return found


def _in_data(batch: Mapping[str, Any], index: Tensor) -> str:
    """Which of the data itself is not finite, if the batch is still the one with these ids."""
    if batch.get("index") is not index:
        return ""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    broken = [f"{name} of {samples(broken_rows(tensors[name], index))} so itself" for name in not_finite(tensors)]
    inner = {key: value for key, value in batch.get("inputs", {}).items() if isinstance(value, Tensor)}
    broken += [f"{name} holds such numbers itself" for name in not_finite(inner)]
    return f" ({', '.join(broken)})" if broken else ""


def _remedy(spoilt: bool, allowed: int) -> str:
    if spoilt:
        return "Lower the learning rate or clip gradients, and go on from a checkpoint before that"
    more = "raise" if allowed else "set"
    return f"Look at these samples, or lower the learning rate; to leave such steps out, {more} model.max_skipped_steps"
