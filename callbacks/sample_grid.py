"""Images while training: the student's, and the teacher's from the same seeds beside them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.drawing import DrawsTeacher, check_drawable, first_labels
from callbacks.logged_images import log_image
from sparsight.common.errors import require
from sparsight.common.finite import broken_rows, samples
from sparsight.common.labelled_grid import labelled_grid
from sparsight.common.training.averaging import averaging
from sparsight.common.training.sharding import is_sharded

FIRST = 10  # classes that are drawn where none are named


class SampleGrid(Callback):
    """Draws fixed labels or captions from fixed seeds, to every logger that takes images and as PNG files.

    Every column is one condition, named above it; with a teacher its row stands above the student's.

    Args:
        labels: Class labels to draw; the first ten of a model of classes where neither these nor captions are given.
        captions: Captions to draw, for text-conditioned models.
        every_n_steps: Optimiser steps between grids; one is drawn at the end of ``fit`` in any case.

    Raises:
        ValueError: Both labels and captions are given, or ``every_n_steps`` is not positive.
    """

    def __init__(
        self, labels: list[int] | None = None, captions: list[str] | None = None, every_n_steps: int = 1000
    ) -> None:
        if labels is not None and captions is not None:
            raise ValueError("give labels or captions, and not both")
        require(every_n_steps >= 1, "every_n_steps", every_n_steps, "1 or more")
        self.labels, self.captions = labels, captions
        self.every_n_steps = every_n_steps
        self._drawn_at = -1
        self._teacher_images: Tensor | None = None

    def known_captions(self) -> list[str]:
        """Those that are drawn."""
        return self.captions or []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot draw this.

        Raises:
            ConfigurationError: It draws no samples, or draws from other conditions than are given.
        """
        if self.labels is None and self.captions is None:
            self.labels = first_labels(self, pl_module, most=FIRST)
        column = "caption" if self.labels is None else "label"
        check_drawable(self, pl_module, column=column, conditions=self.labels or self.captions)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Draw when it is time."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._drawn_at:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the result."""
        if trainer.global_step != self._drawn_at:
            self._draw(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: Any) -> None:
        self._drawn_at = trainer.global_step
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"  # all processes must ask for log_dir
        if not trainer.is_global_zero and not is_sharded(module):
            return  # the first process draws; of a model that is split, all hold a part
        batch: dict[str, Any] = {"caption": self.captions}
        if self.labels is not None:
            batch = {"label": torch.tensor(self.labels, device=module.device)}
        index = torch.arange(len(self.labels or self.captions or ()))
        rows: dict[str, Tensor] = {}
        if isinstance(module, DrawsTeacher):
            if self._teacher_images is None:
                self._teacher_images = module.draw_teacher(batch, index).cpu()
            rows["teacher"] = self._teacher_images
        average = averaging(trainer)
        with nullcontext() if average is None else average.averaged(module):
            rows["student" if rows else "samples"] = module.draw(batch, index).cpu()
        if not trainer.is_global_zero:
            return
        for images in rows.values():
            broken = broken_rows(images, index)
            if broken:
                rank_zero_warn(f"step {self._drawn_at}: {samples(broken)} black in the grid, being NaN or infinite")
        grid = labelled_grid(rows, [str(condition) for condition in self.labels or self.captions or ()])
        folder.mkdir(parents=True, exist_ok=True)
        grid.save(folder / f"step_{self._drawn_at:07d}.png")
        log_image(trainer, "samples", grid, self._drawn_at)
