"""Images for every logger that takes them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image


@runtime_checkable
class TakesImages(Protocol):
    """A logger that takes images, as Lightning's for Weights & Biases does."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images under a name."""


def log_image(trainer: Trainer, name: str, image: Image.Image, step: int) -> None:
    """Give an image to every logger of a run that takes images; the others are passed over."""
    for logger in trainer.loggers:
        _log_image(logger, name, image, step)


def _log_image(logger: Logger, name: str, image: Image.Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=name, step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(image, name=name, step=step)
    elif isinstance(logger, TakesImages):
        logger.log_image(name, [image], step=step)
