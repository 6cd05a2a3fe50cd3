"""What every LightningModule here shares: plain hyper-parameters, optimisers, checkpoints of trained tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.optimization import get_scheduler
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


class TrainedPartsModule(LightningModule):
    """Base of modules that train parts of a pretrained model and keep only those in checkpoints.

    Attributes:
        export_name: Folder that ExportAtEnd makes in the trainer's root folder unless it is told another one.
    """

    export_name = "student"

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold what was trained; load_state_dict checks it exactly

    def keep_hyperparameters(self, *, ignore: Sequence[str] = ()) -> None:
        """Save the constructor's arguments that are plain data, so that checkpoints load with ``weights_only``.

        Built by the command, every argument is plain; built in Python, callables and modules are left out.
        """
        frame = inspect.currentframe()
        assert frame is not None
        self.save_hyperparameters(ignore=list(ignore), frame=frame.f_back)
        not_plain = [name for name, value in self.hparams.items() if not _is_plain(value)]
        self.save_hyperparameters(ignore=[*ignore, *not_plain], frame=frame.f_back)

    def end_after(self, steps: int) -> None:
        """Let training end after that many optimiser steps, unless the trainer stops earlier."""
        loop = self.trainer.fit_loop.epoch_loop
        loop.max_steps = steps if loop.max_steps < 0 else min(loop.max_steps, steps)

    # -- optimisers ----------------------------------------------------------------------------------------------

    def optimisers(
        self,
        optimizer: OptimizerCallable,
        *,
        lr_schedule: str,
        warmup_steps: int,
        steps: int,
        groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> OptimizerLRSchedulerConfig:
        """Lightning's optimiser dictionary with a diffusers learning-rate schedule.

        Args:
            optimizer: Makes an optimiser of parameters or groups of them.
            lr_schedule: Name of the schedule.
            warmup_steps: Steps over which the learning rate rises.
            steps: Steps of the whole schedule.
            groups: Parameter groups with their own settings; all trainable parameters alike if not given.
        """
        trained = optimizer([p for p in self.parameters() if p.requires_grad] if groups is None else groups)
        schedule = get_scheduler(lr_schedule, trained, num_warmup_steps=warmup_steps, num_training_steps=steps)
        return {"optimizer": trained, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def trained_names(self) -> set[str]:
        """Names of the state-dict entries that a checkpoint of this module holds."""
        raise NotImplementedError

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Only what was trained; the rest is in the base model."""
        kept = self.trained_names()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in kept}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` saved.

        Raises:
            ValueError: A trained tensor is missing, or one is there that was not trained.
        """
        expected, given = self.trained_names(), set(state_dict)
        if expected != given:
            raise ValueError(
                f"the checkpoint does not fit this module: missing {sorted(expected - given)[:5]}, unexpected "
                f"{sorted(given - expected)[:5]}; was it made with other sites, blocks or trained parts?"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
