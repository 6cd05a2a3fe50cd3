"""The Trainer whose methods are the command's verbs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.accelerator_connector import _PRECISION_INPUT
from lightning.pytorch.utilities import rank_zero_info

from sparsight.command.store import store_tasks
from sparsight.common.checkpoint.connector import CheckpointConnector
from sparsight.common.checkpoint.find import newest_whole
from sparsight.common.checkpoint.folder import write_in_parts, writes_parts
from sparsight.common.checkpoint.interrupt import SaveWhenStopped
from sparsight.common.checkpoint.io import link_checkpoint, with_whole_files
from sparsight.common.checkpoint.monitors import CheckMonitors
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.precision import precision_that_pays
from sparsight.diffusion.measure.benchmark import TOKENS, Settings, benchmark_model
from sparsight.lvlm.chat.show import show_records
from sparsight.lvlm.export.write import processor_of
from sparsight.lvlm.scores import LayerScore
from sparsight.lvlm.scores.analyze import Split, analyze_module, default_scores
from sparsight.publish.export import export_and_push


class SparsightTrainer(Trainer):
    """Lightning's Trainer; its further methods are the command's further verbs.

    Checkpoints are whole files with a hash of themselves, compared with the run that loads them whatever names them,
    and one is saved when a run is stopped.

    Args:
        precision: As Lightning's, or ``auto``: ``bf16-mixed`` where the hardware computes in bfloat16,
            ``32-true`` elsewhere.
        limit_train_batches: As Lightning's, as are the others: a number of batches, or a share of all from 0 to 1.
        limit_val_batches: The same in validation.
        limit_test_batches: The same in tests.
        limit_predict_batches: The same in prediction.
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
        **kwargs: Any,
    ) -> None:
        if precision == "auto":
            precision, reason = precision_that_pays(str(kwargs.get("accelerator", "auto")))
            rank_zero_info(f"precision auto is {precision}: {reason}")
        super().__init__(
            precision=precision,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )
        self.command: list[str] = []
        self.strategy.checkpoint_io = with_whole_files(self.strategy._checkpoint_io)
        self._checkpoint_connector: CheckpointConnector = CheckpointConnector(self)
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
            super(SparsightTrainer, self).save_checkpoint(path, weights_only, storage_options)

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

    def _found(self, named: str | None) -> str | None:
        return None if named is None else str(self._checkpoint_connector.find(named))

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        weights: Literal["ema", "raw"] = "ema",
        fp16: bool = True,
        overwrite: bool = False,
        untrained: bool = False,
        metrics: str | None = None,
        licence: str | None = None,
        push_to_hub: str | None = None,
        private: bool = True,
        dry_run: bool = False,
    ) -> Path:
        """Write a trained model as a Hugging Face folder, and compare its answers after loading it again.

        Args:
            model: The module that was trained.
            datamodule: Tells the processor of an image-text model; not used otherwise.
            ckpt_path: Checkpoint to export. Without one the module is exported as it is, which is refused where it has
                parameters that should have been trained.
            output: Folder to make; ``export`` in the trainer's root folder if not given.
            weights: The checkpoint's moving average (``ema``, needs TrainableEMA in the run) or its last weights.
            fp16: Write half-precision weights as well.
            overwrite: Replace an earlier export.
            untrained: Export parameters that were never trained; the card says so.
            metrics: JSON file of measured values for the model card: a list of objects with name, value and protocol.
            licence: Identifier of the licence on the hub, e.g. apache-2.0; that of the base model if not given.
            push_to_hub: Repository id to upload the folder to. A folder that holds what looks like a secret is not.
            private: Make a new repository private.
            dry_run: Upload nothing, and list the files that would go, with their sizes.

        Returns:
            The folder.
        """
        return export_and_push(
            model,
            Path(self.default_root_dir, "export") if output is None else Path(output),
            checkpoint=self._found(ckpt_path),
            weights=weights,
            metrics=metrics,
            repo=push_to_hub,
            private=private,
            dry_run=dry_run,
            fp16=fp16,
            overwrite=overwrite,
            untrained=untrained,
            licence=licence,
            processor=processor_of(datamodule),
        )

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

    def benchmark(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        tokens: Sequence[int] = TOKENS,
        dtypes: Sequence[Literal["float32", "bfloat16", "float16"]] = ("float32",),
        batch: int = 1,
        backward: bool = True,
        runs: int = 20,
        max_seconds: float = 20.0,
        output: str | None = None,
    ) -> None:
        """Measure FLOPs, time and memory of mixers and student against the untouched model.

        Args:
            model: A module whose denoiser has mixers, such as AttentionDistillation.
            datamodule: Not used; configurations of other verbs have one.
            tokens: Sizes: tokens of a site, and of the whole denoiser's largest site.
            dtypes: Precisions of weights and inputs.
            batch: Samples.
            backward: Measure forward and backward pass together too, not forward alone.
            runs: Timed runs of each candidate, taken in turn.
            max_seconds: Time for all runs of one candidate at one size. Sizes at which one run takes more than a
                quarter of it are skipped.
            output: Folder for the table, CSV, JSON and plot; ``benchmark`` in the trainer's root folder if not given.
        """
        settings = Settings(tokens, dtypes, batch=batch, backward=backward, runs=runs, max_seconds=max_seconds)
        folder = Path(self.default_root_dir, "benchmark") if output is None else Path(output)
        if self.is_global_zero:
            benchmark_model(model, settings, device=self.strategy.root_device, folder=folder)

    def analyze(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        scores: list[LayerScore] | None = None,
        batches: int = 16,
        split: Split = "train",
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """Score the decoder layers of an image-text model on calibration data, to choose which to tune or prune.

        Args:
            model: A module with decoder layers to score, such as SparseLayerTuning.
            datamodule: Calibration data.
            scores: What to measure; block influence, plain and multimodal, and angular distance of the last and of
                all tokens if not given. Higher means more important.
            batches: Number of calibration batches.
            split: Where they come from: train or val. Scores by loss need answers, which training batches have.
            ckpt_path: Checkpoint to analyse; the module as it starts if not given.
            output: Folder for JSON, CSV and plot; ``scores`` in the trainer's root folder if not given.
        """
        analyze_module(
            self,
            model,
            datamodule,
            scores=default_scores() if scores is None else scores,
            batches=batches,
            split=split,
            checkpoint=self._found(ckpt_path),
            folder=Path(self.default_root_dir, "scores") if output is None else Path(output),
        )

    def inspect(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        split: Literal["train", "val", "test"] = "train",
        index: int = 0,
        count: int = 1,
    ) -> None:
        """Print conversations as the model will see them, with what carries the loss, before anything is trained.

        Args:
            model: Not used; the command does not load it.
            datamodule: One that can describe its records, such as InstructionDataModule.
            split: train, val or test.
            index: Position of the first record in the source of the split.
            count: Number of records.
        """
        if self.is_global_zero:
            show_records(datamodule, split=split, index=index, count=count)

    def reformulate(self, model: LightningModule, datamodule: LightningDataModule, output: str) -> None:
        """Write the tasks of an evaluation as files in ReForm-Eval's format, so that questions and options are stored.

        Args:
            model: Not used; the command does not load it.
            datamodule: A ReformEvalDataModule.
            output: Folder for one JSON file of each task; ``datamodules.PublishedTask`` reads them.
        """
        if self.is_global_zero:
            store_tasks(datamodule, Path(output))
