"""What should have been trained and never was is told where it is measured or used."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from sparsight.common.errors import ConfigurationError
from sparsight.publish.trained import REMEDY


class TellsUntrained(LightningModule):
    """Base of modules that train.

    Attributes:
        refuse_untrained: Predict nothing with parts that were never trained; set by the command.
    """

    refuse_untrained = False

    def untrained(self) -> str | None:
        """What of the module should have been trained and never was, in words; none if there is nothing like that."""
        return None

    def on_validation_start(self) -> None:
        """Say so if nothing was trained."""
        self._announce_untrained()

    def on_test_start(self) -> None:
        """Say so if nothing was trained."""
        self._announce_untrained()

    def on_predict_start(self) -> None:
        """Say so if nothing was trained, or refuse if the command was not told otherwise.

        Raises:
            ConfigurationError: Nothing was trained, and ``refuse_untrained`` is set.
        """
        if self.refuse_untrained and self.untrained() is not None:
            raise ConfigurationError(f"{self.untrained()}: {REMEDY}")
        self._announce_untrained()

    def _announce_untrained(self) -> None:
        lacking = None if self.trainer.state.fn == TrainerFn.FITTING else self.untrained()
        if lacking is not None:
            rank_zero_warn(f"{lacking}, and is measured or used as it is: give a checkpoint with --ckpt_path")
