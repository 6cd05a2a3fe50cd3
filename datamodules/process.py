"""What all datamodules share: their place among the processes, and what they take from the module of their run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from datamodules.sampler import ReportingLoader, epoch_batches
from sparsight.common.checkpoint.hyperparameters import keep_plain
from sparsight.common.datamodule import Follower
from sparsight.common.errors import ConfigurationError, require

_MOST_WORKERS = 1024  # a mistyped number would start processes until the machine stands still


class ProcessDataModule(Follower, LightningDataModule):
    """A datamodule that knows which of how many processes it serves.

    Args:
        num_workers: Loader processes; 0 loads in the main process.
    """

    def __init__(self, *, num_workers: int) -> None:
        super().__init__()
        self._keep_options()
        self.num_workers = num_workers
        require(0 <= num_workers <= _MOST_WORKERS, "num_workers", num_workers, f"0 or more, up to {_MOST_WORKERS}")

    def _keep_options(self) -> None:
        """Let checkpoints hold the constructor's plain arguments, to be compared when a run goes on from them."""
        frame = inspect.currentframe()
        assert frame is not None
        keep_plain(self, frame.f_back, logger=False)

    def _named_model(self, option: str, value: str | None) -> str:
        """The model that an option names, which the command may have taken from the module."""
        if value is None:
            raise ConfigurationError(
                f"{option} is not given, nor a model.{self.follows[option]} to take it from: name a folder or hub id"
            )
        return value

    def check_paths(self) -> None:
        """See that the files that sources name are there, without reading them.

        Raises:
            FileNotFoundError: One is not.
        """

    def open_early(self, stage: str) -> None:
        """Open what lies on this machine and a stage needs, as far as no model is needed for it.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ConfigurationError: The data is not what the options say; ``FileNotFoundError`` or ``ValueError``, too.
        """

    @property
    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _loader_options(self, collate: Callable[[Any], Any]) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "collate_fn": collate, "pin_memory": torch.cuda.is_available()}

    def _limit_epochs(self, loader: ReportingLoader) -> None:
        if self.trainer is not None:
            loader.epoch_batches = epoch_batches(len(loader), self.trainer.limit_train_batches)
