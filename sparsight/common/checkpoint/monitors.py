"""What callbacks watch is logged: a name that nothing logs would stop nothing and save nothing, without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from sparsight.common.checkpoint.find import SUFFIX
from sparsight.common.errors import ConfigurationError

NAME = f"end{SUFFIX}"
ALWAYS = ("step", "epoch")  # which ModelCheckpoint knows by itself
OF_VALIDATION = "val/"
KNOWN = ("lightning", "callbacks", "sparsight")  # packages whose callbacks log what is known here


@runtime_checkable
class LogsSometimes(Protocol):
    """A callback that logs values of a validation, but not in every one."""

    def may_log(self, name: str) -> bool:
        """Whether a value may yet come under this name."""


class CheckMonitors(Callback):
    """Refuses names that a validation does not log as soon as one has run, which is before training where one is tried.

    A run whose ModelCheckpoint has saved nothing because its value never came saves ``end.ckpt``, and says so.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what a validation would have to log where there is none.

        Raises:
            ConfigurationError: A callback watches a value of validation, and no validation runs.
        """
        if sum(trainer.num_val_batches) == 0:
            for key, name in _watched(trainer):
                if name.startswith(OF_VALIDATION):
                    raise ConfigurationError(
                        f"{key} is {name!r}, but nothing is validated: give data.val, leave trainer.limit_val_batches "
                        "above 0, or watch a value of training such as train/loss"
                    )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the batches that are tried before training have logged.

        Raises:
            ConfigurationError: A callback watches a value of validation that is not among it.
        """
        if trainer.callback_metrics:  # none where there is nothing to validate
            self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what a validation has logged.

        Raises:
            ConfigurationError: A callback watches a value of validation that is not among it.
        """
        if not trainer.sanity_checking:
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a callback would have lost."""
        savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        if trainer.fast_dev_run or not savers or any(_has_saved(saver) for saver in savers):  # type: ignore[attr-defined]
            return
        folder, name = savers[0].dirpath, savers[0].monitor
        if folder is None or name is None or trainer.global_step == 0 or savers[0].save_top_k == 0:
            return
        target = Path(folder) / NAME
        trainer.save_checkpoint(target)
        rank_zero_warn(
            f"ModelCheckpoint has saved nothing, as no value of {name!r} came before the end of training (logged were "
            f"{_listed(trainer)}): the last state is in {target}"
        )

    def _check(self, trainer: Trainer) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for key, name in _watched(trainer):
            if not name.startswith(OF_VALIDATION) or name in trainer.callback_metrics:
                continue
            if any(isinstance(each, LogsSometimes) and each.may_log(name) for each in callbacks):
                continue
            told = f"{key} is {name!r}, which no validation logs; logged are {_listed(trainer)}"
            if all(type(each).__module__.partition(".")[0] in KNOWN for each in callbacks):
                raise ConfigurationError(told)
            rank_zero_warn(told)  # a callback of the user's may log it later


def _watched(trainer: Trainer) -> list[tuple[str, str]]:
    """Options of callbacks, in words, and the names of values that they watch."""
    return [
        (f"monitor of {type(callback).__name__} in trainer.callbacks", str(callback.monitor))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor not in (None, *ALWAYS)
    ]


def _listed(trainer: Trainer) -> str:
    names = sorted(name for name in trainer.callback_metrics if name.count("/") < 2)  # without those of every site
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no values"


def _has_saved(saver: ModelCheckpoint) -> bool:
    return bool(saver.best_model_path or saver.last_model_path or saver._last_checkpoint_saved)
