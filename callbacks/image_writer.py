"""Images of ``predict`` on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torchvision.utils import save_image

from sparsight.common.finite import check_rows


class ImageWriter(BasePredictionWriter):
    """Writes every image that ``predict`` draws as ``<folder>/<sample id>.png``.

    Args:
        folder: Where to; ``images`` inside the run's log folder if not given.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Save one batch.

        Raises:
            NonFiniteError: An image is not finite; none of the batch is written.
        """
        if not isinstance(prediction, Mapping) or "images" not in prediction:
            return
        check_rows({"pixels": prediction["images"]}, prediction["index"], "drawn images")
        folder = self.folder_of(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in zip(prediction["index"].tolist(), prediction["images"], strict=True):
            save_image(image, folder / f"{index:08d}.png")

    def folder_of(self, trainer: Trainer) -> Path:
        """Where images of a run go to."""
        return Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "images")
