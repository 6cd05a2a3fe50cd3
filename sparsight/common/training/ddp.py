"""Changing what is trained after a strategy has wrapped a model.

DDP decides at wrapping which gradients it averages. Parameters that are unfrozen later train on each process alone,
without a word (Lightning issue 20340), so the model is wrapped again.
"""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from sparsight.common.errors import ConfigurationError


def check_training_may_change(trainer: Trainer) -> None:
    """Make sure, before training, that what is trained can change in a run.

    Raises:
        ConfigurationError: The strategy splits parameters, which settles it.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise ConfigurationError(
            "under ModelParallelStrategy (FSDP2) what is trained cannot change in a run: let all stages train the same "
            "parts, methods in one stage alone, and no layers rotate; or make each stage a run of its own, from the "
            "last one's export; or use DDP"
        )


def average_what_is_trained(trainer: Trainer) -> None:
    """Let gradients of exactly the parameters that now require them be averaged over processes."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
