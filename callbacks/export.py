"""Export at the end of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.strategies import ModelParallelStrategy

from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.averaging import averaging
from sparsight.lvlm.export.write import processor_of
from sparsight.publish.checkpoint import stages_of
from sparsight.publish.export import (
    OUTPUT_OF_EXPORT,
    ROOT_OF_EXPORT,
    Named,
    check_destination,
    export_and_push,
    rehearse,
)
from sparsight.publish.facts import Metric, Run, hardware, newest_grid
from sparsight.publish.hub import check_repo


class ExportAtEnd(Callback):
    """Writes the trained model as a Hugging Face folder once ``fit`` has ended; see ``sparsight export``.

    With TrainableEMA in the run the folder holds its average, since that is what the module keeps. A run that was
    broken off, or a ``fast_dev_run``, exports nothing.

    Args:
        output: Folder to make, refused before training begins if it exists; in the trainer's root folder if not given:
            ``student`` for diffusion models, ``tuned`` or ``pruned`` for image-text models.
        fp16: Write half-precision weights as well.
        overwrite: Replace an earlier export.
        metrics: JSON file of measured values for the model card, read when training has ended.
        licence: Identifier of the licence on the hub; that of the base model if not given.
        push_to_hub: Repository id to upload the folder to.
        private: Make a new repository private.
    """

    def __init__(
        self,
        output: str | None = None,
        fp16: bool = True,
        overwrite: bool = False,
        metrics: str | None = None,
        licence: str | None = None,
        push_to_hub: str | None = None,
        private: bool = True,
    ) -> None:
        self.output = output
        self.overwrite = overwrite
        self.options: dict[str, Any] = {
            "fp16": fp16,
            "metrics": metrics,
            "licence": licence,
            "repo": push_to_hub,
            "private": private,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail now rather than after training.

        Raises:
            ConfigurationError: The model is split over processes, none of which could write it, or nothing is to be
                trained.
            ValueError: The output exists and is not to be overwritten.
        """
        if stage == "fit":
            folder = self._folder(trainer, pl_module)
            option = ROOT_OF_EXPORT if self.output is None else OUTPUT_OF_EXPORT
            check_destination(folder, overwrite=self.overwrite, option=option)
            check_repo(self.options["repo"])
            if 0 in (trainer.max_steps, trainer.max_epochs):
                raise ConfigurationError(
                    "ExportAtEnd would export what was never trained: trainer.max_steps or max_epochs is 0"
                )
            if isinstance(trainer.strategy, ModelParallelStrategy):
                raise ConfigurationError(
                    "ExportAtEnd cannot write a model that is split over processes: leave it out, save checkpoints "
                    "with save_distributed_checkpoint: false, and run `sparsight export --ckpt_path` on one afterwards"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try what the export needs besides trained weights.

        Raises:
            ConfigurationError: It would fail.
        """
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with trainer.precision_plugin.forward_context():
                rehearse(pl_module, processor=processor_of(datamodule_of(trainer)))

    def tried(self, folder: Path) -> None:
        """A trial exports by itself."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Export on rank 0, once all processes have ended training."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = trainer.log_dir or trainer.default_root_dir  # a broadcast: all processes must ask
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            module: Any = pl_module
            if (lacking := module.untrained()) is not None:
                raise ConfigurationError(
                    f"ExportAtEnd exports nothing: {lacking}. Train for more steps: in the first one of a warm-up the "
                    "learning rate is 0"
                )
            export_and_push(
                pl_module,
                self._folder(trainer, pl_module),
                run=replace(run_of(trainer), samples=newest_grid(Path(folder), steps=trainer.global_step)),
                overwrite=self.overwrite,
                processor=processor_of(datamodule_of(trainer)),
                **self.options,
            )

    def _folder(self, trainer: Trainer, module: Any) -> Path:
        if self.output is not None:
            return Path(self.output)
        return Path(trainer.default_root_dir, module.export_name if isinstance(module, Named) else "export")


def run_of(trainer: Trainer) -> Run:
    """What a trainer knows of the run that it has just ended."""
    module: Any = trainer.lightning_module
    protocol = f"last value logged while training, on the run's own data, step {trainer.global_step}"
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.count("/") == 1}
    return Run(
        steps=trainer.global_step,
        skipped=module.guard.skipped,
        stages=stages_of(module, trainer.global_step),
        weights="moving average" if averaging(trainer) else "those of the last step",
        hardware=f"{hardware()}; {trainer.world_size} process(es), precision {trainer.precision}",
        config=_config_of(trainer),
        metrics=[Metric(name, value, protocol) for name, value in logged.items() if name.startswith("val/")],
    )


def _config_of(trainer: Trainer) -> str | None:
    """The run's configuration, if the command made the trainer."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    saver = next((callback for callback in callbacks if isinstance(callback, SaveConfigCallback)), None)
    return None if saver is None else saver.parser.dump(saver.config, skip_unset=False)
