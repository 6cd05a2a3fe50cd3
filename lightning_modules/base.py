"""What every LightningModule here shares: plain hyper-parameters, optimisers, checkpoints of trained tensors."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import FSDPPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.finite_guard import FiniteGuard, is_fused
from lightning_modules.untrained import TellsUntrained
from sparsight.common.checkpoint.file import FORMAT, check_format, local, read_header
from sparsight.common.checkpoint.hyperparameters import keep_plain
from sparsight.common.checkpoint.run_record import RUN, check_module, check_run, run_record
from sparsight.common.datamodule import OfWing, check_wings, datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_checkpoint, check_finite
from sparsight.common.formats import KEY
from sparsight.common.training.processes import refuse_together
from sparsight.common.training.sharding import own_class

HALVES = {"16": "float16", "bf": "bfloat16"}


class TrainedPartsModule(OfWing, TellsUntrained):
    """Base of modules that train parts of a pretrained model and keep only those in checkpoints.

    Args:
        max_skipped_steps: How many optimiser steps with losses or gradients that are not finite are left out before the
            run ends; such a step counts, and changes neither parameters nor optimiser states nor averages.

    Attributes:
        export_name: Folder that ExportAtEnd makes in the trainer's root folder unless it is told another one.
        frozen_option: The option that says in which precision the frozen part is held.
        took_step: Whether the last optimiser step changed parameters; a tensor where the device decides.
        waits_for_steps: Whether that is always known at once.
        has_learned: Whether any optimiser step changed anything.

    Raises:
        ValueError: ``max_skipped_steps`` is negative.
    """

    export_name = "student"
    frozen_option: str | None = None
    waits_for_steps = True
    estimated_bytes: int | None = None  # that training was said to need of its device

    def __init__(self, *, max_skipped_steps: int = 0) -> None:
        super().__init__()
        if max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps is 0 or more, got {max_skipped_steps}")
        self.guard = FiniteGuard(max_skipped_steps)
        self.took_step: bool | Tensor = True
        self._would_learn = False
        self.has_learned = False
        self._steps_before = 0
        self.strict_loading = False  # checkpoints hold what was trained; load_state_dict checks it exactly

    @classmethod
    def export_name_for(cls, options: Mapping[str, Any]) -> str:
        """What ``export_name`` is of a module with these options, before it is made."""
        return cls.export_name

    def keep_hyperparameters(self, *, ignore: Sequence[str] = ()) -> None:
        """Save the constructor's arguments that are plain data; see ``keep_plain``."""
        frame = inspect.currentframe()
        assert frame is not None
        keep_plain(self, frame.f_back, ignore=ignore)

    def end_after(self, steps: int) -> None:
        """Let training end after that many optimiser steps, unless the trainer stops earlier."""
        loop = self.trainer.fit_loop.epoch_loop
        loop.max_steps = steps if loop.max_steps < 0 else min(loop.max_steps, steps)

    # -- what was trained ------------------------------------------------------------------------------------------

    @property
    def steps_taken(self) -> int:
        """Optimiser steps of the loaded checkpoint, or of this run, with those that were left out."""
        return max(self._steps_before, self.global_step)

    # -- what is refused before data are made ------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """None; but this is called before data are prepared, so that what cannot work is refused here.

        Raises:
            ConfigurationError: The data are for models of another kind, or the trainer would hold all weights in half
                precision.
        """
        check_wings(own_class(self), type(datamodule_of(self._trainer)))
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision[:2] in HALVES:
            frozen = "" if self.frozen_option is None else f", and {self.frozen_option} to {HALVES[precision[:2]]}"
            raise ConfigurationError(
                f"trainer.precision: {precision} would hold all weights in half precision, which swallows small "
                f"updates of what is trained: set it to {precision.replace('true', 'mixed')}{frozen}"
            )
        return []

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
        """Lightning's optimiser dictionary with one of transformers' learning-rate schedules.

        Args:
            optimizer: Makes an optimiser of parameters or groups of them.
            lr_schedule: Name of the schedule.
            warmup_steps: Steps over which the learning rate rises.
            steps: Steps of the whole schedule.
            groups: Parameter groups with their own settings; all trainable parameters alike if not given.

        Raises:
            ConfigurationError: The learning rate is 0, or gradients cannot be clipped before the optimiser takes them.
        """
        from transformers import get_scheduler

        trained = optimizer([p for p in self.parameters() if p.requires_grad] if groups is None else groups)
        if not any(group["lr"] > 0 for group in trained.param_groups):
            raise ConfigurationError("lr of model.optimizer is 0, so nothing would be trained; allowed: above 0")
        plugin = None if self._trainer is None else self._trainer.precision_plugin
        clips = self._trainer is not None and bool(self._trainer.gradient_clip_val)
        if clips and isinstance(plugin, MixedPrecision) and plugin.scaler is not None and is_fused(trained):
            raise ConfigurationError(
                "a fused optimiser unscales gradients of 16-mixed by itself, after they are clipped: set "
                "model.optimizer.init_args.fused to false, or trainer.gradient_clip_val to null"
            )
        if lr_schedule != "constant" and warmup_steps >= steps > 1:
            rank_zero_warn(
                f"warmup_steps is {warmup_steps} and {self.stage_name} has {steps} steps, so the learning rate gets no "
                f"higher than {(steps - 1) / warmup_steps:.0%} of lr: give fewer"
            )
        schedule = get_scheduler(lr_schedule, trained, num_warmup_steps=warmup_steps, num_training_steps=steps)
        return {"optimizer": trained, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- numbers that are not finite -----------------------------------------------------------------------------

    @property
    def stage_name(self) -> str:
        """The stage that is being trained, for messages."""
        return "the only stage"

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimiser see no gradients of a step that is left out.

        Raises:
            NonFiniteError: A loss or gradient is not finite on some process, and no step may be left out any more.
        """
        self.settle()
        plugin = self.trainer.precision_plugin
        self.took_step = self.guard.may_step(
            optimizer,
            named=self._trained_parameters,
            where=f"step {self.global_step}, {self.stage_name}",
            scaler=plugin.scaler if isinstance(plugin, (MixedPrecision, FSDPPrecision)) else None,
            wait=self.waits_for_steps,
        )
        # the first step of a warm-up changes nothing
        self._would_learn = any(group["lr"] > 0 for group in optimizer.param_groups)
        if self.took_step is False:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        elif self.took_step is True:
            self.has_learned |= self._would_learn

    def settle(self) -> None:
        """See whether the last step was taken, where the device decided that and nobody has asked yet.

        Raises:
            NonFiniteError: A loss or gradient was not finite, and no step may be left out any more.
        """
        if self.guard.settle(self._trained_parameters):
            self.has_learned |= self._would_learn

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, with fused optimisers in mixed precision too: only a gradient scaler is in their way."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """Look at what the last step left, and remember the step for another trainer, which counts from 0.

        Raises:
            NonFiniteError: A trained parameter is not finite.
        """
        self.settle()
        self._steps_before = self.steps_taken
        refuse_together(lambda: check_finite(self._trained_parameters(), f"step {self.global_step}"))

    def _trained_parameters(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is, beside the options that Lightning keeps, and how many steps were left out.

        Raises:
            NonFiniteError: Something in the checkpoint is not finite.
        """
        self.settle()
        checkpoint[KEY] = FORMAT
        if self._trainer is not None:
            checkpoint[RUN] = run_record(self._trainer)
        checkpoint["skipped_steps"] = self.guard.skipped
        checkpoint["has_learned"] = self.has_learned
        refuse_together(lambda: check_checkpoint(checkpoint))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare options, data, batch and seed with those of the checkpoint, whatever named it.

        Raises:
            ConfigurationError: Something differs that must not, or the checkpoint is of a later version.
        """
        trainer = self._trainer
        source = "the checkpoint" if trainer is None or trainer.ckpt_path is None else str(trainer.ckpt_path)
        check_format(checkpoint, source)
        check_module(checkpoint.get("hyper_parameters", {}), self, source=source)
        if trainer is not None:
            check_run(checkpoint, trainer, source=source)
        self.guard.skipped = checkpoint.get("skipped_steps", 0)  # checkpoints of earlier versions do not say
        self._steps_before = int(checkpoint.get("global_step", 0))
        self.has_learned = checkpoint.get("has_learned", self._steps_before > self.guard.skipped)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As Lightning's, from files of this machine alone and without running code of theirs.

        Raises:
            CheckpointError: It is an address, or damaged.
        """
        path = local(checkpoint_path)
        read_header(path)
        return super().load_from_checkpoint(path, *args, **kwargs | {"weights_only": True})

    def trained_names(self) -> set[str]:
        """Names of the state-dict entries that a checkpoint of this module holds."""
        raise NotImplementedError

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Only what was trained; the rest is in the base model."""
        kept = self.trained_names()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in kept}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` saved.

        Raises:
            ValueError: A trained tensor is missing, or one is there that was not trained.
            NonFiniteError: One is not finite.
        """
        check_finite(state_dict, "the checkpoint is spoilt")
        expected, given = self.trained_names(), set(state_dict)
        if expected != given:
            raise ValueError(
                f"the checkpoint does not fit this module: missing {sorted(expected - given)[:5]}, unexpected "
                f"{sorted(given - expected)[:5]}; was it made with other sites, blocks or trained parts?"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)
