"""Exponential moving average of what is trained, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from sparsight.common.finite import Guarded, NonFiniteError, all_finite
from sparsight.common.training.averaging import AVERAGE
from sparsight.common.training.processes import summed
from sparsight.common.training.sharding import fill, own_part, whole


class TrainableEMA(Callback):
    """Averages the trainable parameters in fp32 and puts the average in place for validation, test and prediction.

    After optimiser step s the average moves by 1 - min(decay, (1 + s) / (10 + s)), so that early steps are forgotten;
    of what a later stage begins to train it is what its first step left, and what no longer trains keeps its average.
    It is saved in checkpoints beside the raw parameters and restored with them. After ``fit`` the module keeps the
    average, which is what exports at the end of a run should hold. A step that was left out does not move it, and
    parameters that are not finite never enter it: where it would next be used, the run ends.

    torch's ``AveragedModel`` and Lightning's ``WeightAveraging`` copy the whole model, frozen teacher included, and
    know no step that was left out; this holds what is trained, once, also where FSDP2 splits it.

    Args:
        decay: Share of the old average kept at every step.

    Raises:
        ValueError: ``decay`` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._names: dict[int, str] = {}  # of all parameters, by their identity
        self._step = -1
        self._finite: Tensor | None = (
            None  # whether all parameters were, so far; on their device, which nobody waits for
        )

    def shaping(self) -> dict[str, Any]:
        """What must not change on resuming."""
        return {"decay": self.decay}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin from the parameters, or from the restored average (FSDP2 restores it after ``on_fit_start``)."""
        parameters = dict(pl_module.named_parameters())
        learning = {name for name, _ in _trainable(pl_module)}
        named = {name: p for name, p in parameters.items() if name in learning or name in self.average}
        for name, parameter in named.items():
            start = parameter.detach().float().clone()
            if name in self.average:
                fill(start, self.average[name])
            self.average[name] = start
        self.average = {name: self.average[name] for name in named}
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average once for every optimiser step."""
        if trainer.global_step == self._step:  # accumulating
            return
        self._step = trainer.global_step
        took = pl_module.took_step if isinstance(pl_module, Guarded) else True
        if took is False:
            return
        named = {self._names[id(p)]: p.detach() for p in _learning(trainer.optimizers) if id(p) in self._names}
        finite = summed((~all_finite(named.values())).int()) == 0  # all processes take the same average, or none does
        self._finite = finite if self._finite is None else self._finite & finite
        share = 1 - min(self.decay, (1 + self._step) / (10 + self._step))
        older = [name for name in named if name in self.average]
        self._move(older, named, torch.where(finite & took, share, 0.0))
        self.average |= {
            name: parameter.float().clone() for name, parameter in named.items() if name not in self.average
        }

    def _move(self, names: Sequence[str], named: Mapping[str, Tensor], share: Tensor) -> None:
        """Bring averages nearer to parameters by a share of the way, in a few kernels, but for what is not finite."""
        if not names:
            return
        averages = [own_part(self.average[name]) for name in names]
        together = torch.empty(
            sum(average.numel() for average in averages), device=averages[0].device, dtype=averages[0].dtype
        )
        pieces = together.split([average.numel() for average in averages])
        ways = [piece.view_as(average) for piece, average in zip(pieces, averages, strict=True)]
        torch._foreach_copy_(ways, [own_part(named[name]) for name in names])
        torch._foreach_sub_(ways, averages)
        together.mul_(share).nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_add_(averages, ways)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the average."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training the raw parameters."""
        self._swap_out(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the average."""
        self._swap_in(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the raw parameters."""
        self._swap_out(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with the average."""
        self._swap_in(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the raw parameters."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Back to the raw parameters, which checkpoints on this end must hold."""
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module: it is the result of the run."""
        self._swap_in(pl_module)
        self._raw = None

    def state_dict(self) -> dict[str, Any]:
        """The average, for the checkpoint.

        Raises:
            NonFiniteError: Parameters were not finite.
        """
        self._check()
        return {AVERAGE: {name: whole(value).cpu() for name, value in self.average.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average from a checkpoint."""
        self.average = dict(state_dict[AVERAGE])

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """The module with the average in place, for other callbacks that draw samples while training."""
        already = self._raw is not None
        if not already:
            self._swap_in(pl_module)
        try:
            yield
        finally:
            if not already:
                self._swap_out(pl_module)

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        if not self.average or self._raw is not None:
            return
        self._check()
        named = {name: p for name, p in pl_module.named_parameters() if name in self.average}
        self._raw = {name: parameter.detach().clone() for name, parameter in named.items()}
        for name, parameter in named.items():
            parameter.copy_(self.average[name])

    def _check(self) -> None:
        if self._finite is not None and not bool(self._finite):
            raise NonFiniteError(
                f"by step {self._step} parameters had become NaN or infinite, which the moving average did not take: "
                "lower the learning rate or clip gradients, and go on from the last checkpoint"
            )

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is None:
            return
        for name, parameter in pl_module.named_parameters():
            if name in self._raw:
                parameter.copy_(self._raw[name])
        self._raw = None


def _trainable(module: LightningModule) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _learning(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[torch.nn.Parameter]:
    """What optimisers train at present: a walk through all modules would cost more than the average."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return (parameter for group in groups for parameter in group["params"] if parameter.requires_grad)
