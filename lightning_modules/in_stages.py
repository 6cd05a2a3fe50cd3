"""Training in stages, one after the other, each with an optimiser of its own: for both wings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Generic

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.base import TrainedPartsModule
from sparsight.common.checkpoint.run_record import check_stages
from sparsight.common.plain import is_plain
from sparsight.common.training.stage_clock import AnyStage, StageClock

SAVED = "sparsight"  # key in checkpoints under which a module keeps what is its own, the stage among it


class InStages(TrainedPartsModule, Generic[AnyStage]):
    """Lets the stages of ``clock``, which a subclass sets, follow each other; other bases are named after it.

    Attributes:
        clock: The stages.
    """

    clock: StageClock[AnyStage]
    _stage_index: int = 0

    @property
    def stage(self) -> AnyStage:
        """The stage that is being trained."""
        return self.clock.stages[self._stage_index]

    @property
    def stage_number(self) -> str:
        """Which of how many stages is being trained, in words."""
        return f"stage {self._stage_index + 1} of {len(self.clock.stages)}"

    @property
    def stage_name(self) -> str:
        """Number and objective of the stage, for messages."""
        return f"{self.stage_number} ({self.stage.objective})"

    def setup(self, stage: str) -> None:
        """The stages say how long training is, unless the trainer stops earlier."""
        super().setup(stage)
        if stage == "fit":
            self.end_after(self.clock.total)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A new stage begins with a fresh optimiser."""
        index = self.clock.index(self.global_step)
        if index != self._stage_index:
            self.settle()  # while what the last stage trained is known by its names
            self._stage_index = index
            self.on_stage_start()
            self.trainer.strategy.setup_optimizers(self.trainer)

    def on_stage_start(self) -> None:
        """Prepare the model for ``stage``, which is new; its optimiser is made afterwards."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stages, and which one it is, beside what the subclass keeps."""
        checkpoint.setdefault(SAVED, {})["stage"] = self._stage_index
        checkpoint[SAVED]["stages"] = self._stages()
        super().on_save_checkpoint(checkpoint)

    def take_stage(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the stage that a checkpoint was saved in, once it is known to be of this model.

        Raises:
            CheckpointError: Stages differ from those that it was trained in; more may follow them.
        """
        trainer = self._trainer
        source = "the checkpoint" if trainer is None or trainer.ckpt_path is None else str(trainer.ckpt_path)
        check_stages(checkpoint[SAVED].get("stages", []), self._stages(), source=source)
        self._stage_index = checkpoint[SAVED]["stage"]
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and self._steps_before >= self.clock.total:
            rank_zero_warn(
                f"all {len(self.clock.stages)} stages of {source} are over, and nothing is left to train: to train on, "
                "add a stage behind them"
            )

    def _stages(self) -> list[dict[str, Any]]:
        """Fields of the stages, as plain data."""
        stages: Any = self.clock.stages  # dataclasses, which no protocol can say
        return [{name: value for name, value in asdict(stage).items() if is_plain(value)} for stage in stages]
