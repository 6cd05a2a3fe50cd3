"""The look at a step's losses and gradients before the optimiser uses them, with which all processes agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Adam, AdamW, Optimizer

from sparsight.common.finite import NonFiniteError, broken, broken_rows, listed, looked_at, not_finite, samples
from sparsight.common.training.dtypes import works_on
from sparsight.common.training.processes import everywhere, summed

Noted = tuple[dict[str, Tensor], Tensor]
"""Loss terms of a batch, and its sample ids (B,)."""


@dataclass
class _Look:
    """What a step was judged by; all of it on the device but ``broken``.

    Attributes:
        broken: Processes with loss terms, and with gradients, that are not finite, (2,), on the processor.
        arrived: When ``broken`` is there; ``None`` if it is.
        terms: Loss terms of each batch, looked at.
        gradients: Parameters whose gradients were looked at, and what was found.
    """

    where: str
    noted: list[Noted]
    batch: Mapping[str, Any]
    broken: Tensor
    arrived: torch.cuda.Event | None
    terms: list[list[tuple[list[str], Tensor]]]
    gradients: list[tuple[list[int], Tensor]]


class FiniteGuard:
    """Decides whether an optimiser step is taken: only if losses and gradients of all processes are finite.

    Where the optimiser can leave out a step on its device (Adam and AdamW, ``fused``), it is told so there and nobody
    waits: the next step, checkpoint or end of training tells.

    Args:
        allowed: How many steps may be left out in a run before it ends.

    Attributes:
        skipped: How many were left out so far.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped = 0
        self._taken = False  # whether any step was
        self._noted: list[Noted] = []
        self._batch: Mapping[str, Any] = {}
        self._look: _Look | None = None

    def note(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Remember the loss terms of a batch until the step that uses them; several where gradients accumulate."""
        self._noted.append(({name: term.detach() for name, term in terms.items()}, batch["index"]))
        self._batch = batch

    def may_step(
        self,
        optimizer: Optimizer,
        *,
        named: Callable[[], dict[str, Tensor]],
        where: str,
        scaler: GradScaler | None,
        wait: bool = True,
    ) -> bool | Tensor:
        """Whether the step may be taken; one wait for the device, or none. The step before is settled already.

        A gradient scaler leaves out steps whose scaled gradients overflow, and lowers its scale: that is no error
        before the scale is down at 1.

        Args:
            optimizer: Its parameters have gradients.
            named: Gives these parameters by name, for messages.
            where: Step and stage, for messages.
            scaler: That of fp16 training.
            wait: Whether the answer is wanted now, even where the optimiser itself can leave out a step.

        Returns:
            The answer; as a tensor on the device where nobody waited for it.

        Raises:
            NonFiniteError: Something is not finite, and no further step may be left out.
        """
        noted, self._noted = self._noted, []
        batch, self._batch = self._batch, {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        later = not wait and scaler is None and can_leave_out(optimizer)
        device = parameters[0].device
        terms = [looked_at(of_batch) for of_batch, _ in noted]
        gradients = looked_at({number: p.grad for number, p in enumerate(parameters) if p.grad is not None})
        of_terms = [look for looks in terms for look in looks]
        bad = torch.stack([_any_broken(looks, device) for looks in (of_terms, gradients)])
        count = summed(bad.int())
        asynchronous = later and works_on(device)
        here = count.to("cpu", non_blocking=asynchronous)
        arrived = torch.cuda.current_stream(device).record_event() if asynchronous and device.type == "cuda" else None
        of_parameters = [([id(parameters[number]) for number in numbers], fine) for numbers, fine in gradients]
        self._look = _Look(where, noted, batch, here, arrived, terms, of_parameters)
        if later:
            found_inf = (count.sum() > 0).float()
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as a gradient scaler tells it
            return found_inf == 0
        bad_terms, bad_gradients = here.tolist()
        if bad_gradients and not bad_terms and scaler is not None and scaler.get_scale() > 1:
            self._look = None
            return False  # the scaler finds the same and passes over it
        return self.settle(named) is not False

    def settle(self, named: Callable[[], dict[str, Tensor]]) -> bool | None:
        """Whether the step that was last judged was taken; ``None`` if that was said before.

        Args:
            named: Gives the trained parameters by name, for messages.

        Raises:
            NonFiniteError: It was not, and none may be left out any more.
        """
        look, self._look = self._look, None
        if look is None:
            return None
        if look.arrived is not None:
            look.arrived.synchronize()
        if not any(look.broken.tolist()):
            self._taken = True
            return True
        by_name = named()
        found = [finding for process in everywhere(_findings(look, by_name)) for finding in process]
        text = f"{look.where}: {'; '.join(dict.fromkeys(found))}. Nothing was changed by this step"
        spoilt = any(everywhere(bool(not_finite(by_name))))
        if spoilt or self.skipped >= self.allowed:
            raise NonFiniteError(f"{text}. {_remedy(spoilt, self.allowed, begun=self._taken or self.skipped > 0)}")
        self.skipped += 1
        rank_zero_warn(f"{text}: it is left out, number {self.skipped} of at most {self.allowed} (max_skipped_steps)")
        return False


def can_leave_out(optimizer: Optimizer) -> bool:
    """Whether an optimiser leaves out a step on its device if a tensor there says so.

    SGD would begin with a momentum of unset memory, and parameters that are split over processes take no such tensor.
    """
    split = any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    return isinstance(optimizer, (Adam, AdamW)) and is_fused(optimizer) and not split


def is_fused(optimizer: Optimizer) -> bool:
    """Whether an optimiser takes all of its steps in one kernel."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _any_broken(looks: Sequence[tuple[list[Any], Tensor]], device: torch.device) -> Tensor:
    """Whether anything was not finite, on a device."""
    if not looks:
        return torch.zeros((), dtype=torch.bool, device=device)
    return torch.stack([~fine.all().to(device, non_blocking=True) for _, fine in looks]).any()


def _findings(look: _Look, parameters: Mapping[str, Tensor]) -> list[str]:
    spoilt = not_finite(parameters)
    if spoilt:
        return [f"{listed(spoilt)} had become NaN or infinite by the steps before"]
    found = []
    for (_, index), looks in zip(look.noted, look.terms, strict=True):
        names = broken(looks)
        if names:
            ids = listed(index.tolist())
            found.append(f"loss term {listed(names)} of samples {ids} is NaN or infinite{_in_data(look.batch, index)}")
    if not found:
        names_of = {id(parameter): name for name, parameter in parameters.items()}
        names = broken([([names_of[number] for number in numbers], fine) for numbers, fine in look.gradients])
        ids = listed([number for _, index in look.noted for number in index.tolist()])
        found = [f"gradient of {listed(names)} in a batch of samples {ids} is NaN or infinite"] if names else []
    return found


def _in_data(batch: Mapping[str, Any], index: Tensor) -> str:
    """Which of the data itself is not finite, if the batch is still the one with these ids."""
    if batch.get("index") is not index:
        return ""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    spoilt = [f"{name} of {samples(broken_rows(tensors[name], index))} so itself" for name in not_finite(tensors)]
    inner = {key: value for key, value in batch.get("inputs", {}).items() if isinstance(value, Tensor)}
    spoilt += [f"{name} holds such numbers itself" for name in not_finite(inner)]
    return f" ({', '.join(spoilt)})" if spoilt else ""


def _remedy(spoilt: bool, allowed: int, *, begun: bool) -> str:
    if not begun:
        return (
            "No step was taken yet, so that model or data are the cause: look at a mixer of your own, and these samples"
        )
    if spoilt:
        return "Lower the learning rate or clip gradients, and go on from a checkpoint before that"
    more = "raise" if allowed else "set"
    return f"Look at these samples, or lower the learning rate; to leave such steps out, {more} model.max_skipped_steps"
