"""The Trainer whose methods are the command's verbs: training and sampling here, the others in ``verbs``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.trainer.connectors.accelerator_connector import _PRECISION_INPUT
from lightning.pytorch.utilities import rank_zero_info

from sparsight.command.output.results import print_results
from sparsight.command.verbs import Verbs
from sparsight.common.checkpoint.connector import CheckpointConnector
from sparsight.common.checkpoint.find import newest_whole
from sparsight.common.checkpoint.folder import write_in_parts, writes_parts
from sparsight.common.checkpoint.interrupt import SaveWhenStopped
from sparsight.common.checkpoint.io import link_checkpoint, with_whole_files
from sparsight.common.checkpoint.monitors import CheckMonitors
from sparsight.common.errors import ConfigurationError, require
from sparsight.common.training.parameter_summary import ParameterSummary
from sparsight.common.training.precision import precision_that_pays
from sparsight.common.training.progress.run_progress import RunProgress


class SparsightTrainer(Verbs):
    """Lightning's Trainer; its further methods are the command's further verbs.

    Checkpoints are whole files with a hash of themselves, compared with the run that loads them whatever names them,
    and one is saved when a run is stopped.

    Args:
        precision: As Lightning's, or ``auto``: ``bf16-mixed`` where the hardware computes in bfloat16,
            ``32-true`` elsewhere.
        limit_train_batches: As Lightning's, as are the others: a number of batches, or a share of all from 0 to 1.
        limit_val_batches: Of validation.
        limit_test_batches: Of tests.
        limit_predict_batches: Of prediction.
        callbacks: Lightning's or of ``callbacks``; ``RunProgress`` and
            ``ParameterSummary`` are added where none of their kind is among them.
        checkpoint_every_n_steps: After so many steps the run is saved, under a name of its step in place of the one
            before, and as ``last.ckpt``; where there is no ModelCheckpoint among the callbacks. Lightning's saves at
            the end of every epoch if not given.
        enable_progress_bar: Whether a run tells where it is.
        enable_model_summary: Whether the parts of the model are printed.
        kwargs: As Lightning's.

    Attributes:
        command: Arguments of the command that made the trainer; empty in Python.
    """

    # The limits stand here because typing may give back Lightning's Optional[Union[int, float]] as another's that is
    # equal and has float first: the command would then read 1, one batch, as 1.0, all of them.
    def __init__(
        self,
        *,
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        callbacks: list[Callback] | Callback | None = None,
        checkpoint_every_n_steps: int | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if precision == "auto":
            precision, reason = precision_that_pays(str(kwargs.get("accelerator", "auto")))
            rank_zero_info(f"precision auto is {precision}: {reason}")
        chosen = list(callbacks) if isinstance(callbacks, list) else [callbacks] if callbacks else []
        if enable_progress_bar is not False:
            chosen += _default(chosen, ProgressBar, RunProgress())
        if enable_model_summary is not False:
            chosen += _default(chosen, ModelSummary, ParameterSummary())
        if checkpoint_every_n_steps is not None and kwargs.get("enable_checkpointing") is not False:
            steps = checkpoint_every_n_steps
            require(steps >= 1, "checkpoint_every_n_steps", steps, "1 or more, or null")
            chosen += _default(chosen, Checkpoint, ModelCheckpoint(every_n_train_steps=steps, save_last=True))
        super().__init__(
            precision=precision,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            callbacks=chosen,
            enable_progress_bar=enable_progress_bar,
            enable_model_summary=False,  # there is one, or none is wanted
            **kwargs,
        )
        self.command: list[str] = []
        self.strategy.checkpoint_io = with_whole_files(self.strategy._checkpoint_io)
        self._checkpoint_connector: CheckpointConnector = CheckpointConnector(self)
        for loop in (self.validate_loop, self.test_loop):
            loop._print_results = print_results  # type: ignore[method-assign]
        for saver in self.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint):
                saver._link_checkpoint = link_checkpoint  # type: ignore[method-assign]
        self.callbacks += [CheckMonitors(), SaveWhenStopped(self._how_to_go_on)]  # type: ignore[attr-defined]

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        resume: bool | str = False,
    ) -> None:
        """Train.

        Args:
            model: What is trained.
            train_dataloaders: Batches to train on, where there is no datamodule.
            val_dataloaders: Batches to validate on, where there is no datamodule.
            datamodule: Data to train and validate on.
            ckpt_path: Checkpoint to go on from: a path, or ``last``, ``best`` or ``hpc``, which must be there.
            weights_only: Checkpoints are always read as tensors and plain data alone; false is refused.
            resume: Go on from the newest whole checkpoint of runs with this root, or of a folder that is named, and
                begin at step 0 where there is none yet. For jobs that are stopped and started again.

        Raises:
            ConfigurationError: Checkpoint and run do not go together, or both ``ckpt_path`` and ``resume`` are given.
        """
        if weights_only is False:
            raise ConfigurationError("weights_only false would run code of a checkpoint: leave it out")
        if resume is not False:
            if ckpt_path is not None:
                raise ConfigurationError("ckpt_path and resume both name a checkpoint: give one of them")
            ckpt_path = newest_whole(self, resume)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only=True)

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, whole or not at all; all processes must call it."""

        def write(path: Path) -> None:
            super(SparsightTrainer, self).save_checkpoint(path, bool(weights_only), storage_options)

        if writes_parts(self):
            write_in_parts(self, Path(filepath), write)
        else:
            write(Path(filepath))

    def _how_to_go_on(self, checkpoint: Path) -> str:
        if not self.command:
            return f"trainer.fit(..., ckpt_path={str(checkpoint)!r})"
        kept, arguments = [], iter(self.command)
        for argument in arguments:
            option, equals, _ = argument.partition("=")
            if option not in ("--ckpt_path", "--resume"):
                kept.append(argument)
            elif not equals:
                next(arguments, None)
        return shlex.join(["sparsight", *kept, "--ckpt_path", str(checkpoint)])

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        untrained: bool = False,
    ) -> list[Any] | list[list[Any]] | None:
        """Sample images.

        Args:
            model: The module that was trained.
            dataloaders: Conditions to sample for, if no datamodule has them.
            datamodule: Has them.
            return_predictions: Whether to return the images as well.
            ckpt_path: Checkpoint to sample from. Without one the module is used as it is, which is refused where it has
                parameters that should have been trained.
            weights_only: Whether the checkpoint may hold nothing but tensors and plain data.
            untrained: Sample with parameters that were never trained.

        Returns:
            The images, if asked for.
        """
        refused: Any = model or self.lightning_module
        refused.refuse_untrained = not untrained
        return super().predict(
            model,
            dataloaders,
            datamodule,
            return_predictions=return_predictions,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
        )


def _default(given: list[Callback], kind: type[Callback], ours: Callback) -> list[Callback]:
    """Ours, where none of its kind is given."""
    return [] if any(isinstance(each, kind) for each in given) else [ours]
