"""Labelled grids, and the loggers that get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.logged_images import log_image
from sparsight.common.labelled_grid import labelled_grid


class Tracker(Logger):
    """Takes images as Lightning's logger for Weights & Biases does."""

    name, version = "tracker", "0"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        """Nothing."""

    def log_hyperparams(self, params: Any, *more: Any) -> None:
        """Nothing."""

    def log_image(self, key: str, images: list[Any], step: int | None = None, **more: Any) -> None:
        """Keep it."""
        self.got.append((key, images, step))


def pixels(grid: Image.Image) -> Any:
    return np.asarray(grid).astype(int)


def test_images_stand_where_they_belong_and_are_what_they_were() -> None:
    torch.manual_seed(0)
    rows = {"teacher": torch.rand(3, 3, 70, 90), "student": torch.rand(3, 3, 70, 90)}
    grid = labelled_grid(rows, ["0", "1", "2"])
    left, top = grid.width - 3 * 92, grid.height - 2 * 72
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            shown = pixels(grid)[top + 72 * row : top + 72 * row + 70, left + 92 * column : left + 92 * column + 90]
            assert abs(shown - (image.permute(1, 2, 0).numpy() * 255)).max() <= 0.5 + 1e-4
    assert pixels(grid)[top:, :left].min() < 128 and pixels(grid)[:top, left:].min() < 128, "no name, or no caption"


def test_small_and_broken_images_can_be_seen() -> None:
    image = torch.full((1, 1, 8, 8), float("nan"))
    grid = labelled_grid({"samples": image}, ["a caption that is much too long for a column of this width " * 3])
    assert pixels(grid)[-60, -60].tolist() == [0, 0, 0]
    assert grid.height - 66 < 5 * 13 + 4, "a caption takes four lines at most"
    with pytest.raises(ValueError, match=r"zip"):
        labelled_grid({"samples": image}, ["a", "b"])


def test_every_logger_that_takes_images_gets_them(tmp_path: Path) -> None:
    tracker, board = Tracker(), TensorBoardLogger(tmp_path)
    trainer = Trainer(logger=[CSVLogger(tmp_path), tracker, board], accelerator="cpu", enable_progress_bar=False)
    grid = labelled_grid({"samples": torch.rand(2, 1, 64, 64)}, ["a", "b"])
    log_image(trainer, "samples", grid, 7)
    assert tracker.got == [("samples", [grid], 7)]
    board.finalize("success")
    found = EventAccumulator(board.log_dir).Reload().Images("samples")
    assert [(each.step, each.width, each.height) for each in found] == [(7, *grid.size)]
