"""A student that is compared with its teacher: outputs and sites in validation and test, and what both draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.diffusion import STREAM_OFFSET_EVAL, DiffusionModule
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.replace import set_mode
from sparsight.diffusion.surgery.shell import Mode, Shell
from sparsight.diffusion.surgery.site_error import mean_squares
from sparsight.diffusion.train.distiller import Distiller
from sparsight.diffusion.train.relative_errors import RelativeErrors

OUTPUT = "output"  # beside the sites' paths


class BesideTeacher(DiffusionModule):
    """Base of modules whose denoiser holds teacher and student.

    Attributes:
        shells: Places where the two differ, by path.
        distiller: Runs either of them.
    """

    shells: Mapping[str, Shell]
    distiller: Distiller

    def __init__(self, *, seed: int, sampling: Sampling, max_skipped_steps: int) -> None:
        super().__init__(seed=seed, sampling=sampling, max_skipped_steps=max_skipped_steps)
        self._relative_errors = RelativeErrors()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Compare output and sites with the teacher's, at draws that are the same in every validation."""
        self._evaluate(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Compare output and sites with the teacher's on the test data, at draws that are the same in every test."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Relative L2 error of the output and of every site, over all batches and processes."""
        self._log_errors("val")

    def on_test_epoch_end(self) -> None:
        """Relative L2 error of the output and of every site on the test data."""
        self._log_errors("test")

    def _evaluate(self, batch: Mapping[str, Any]) -> None:
        noised = self.noised(batch, step=STREAM_OFFSET_EVAL, condition_dropout=0.0)
        squares = self.distiller.compare_sites(noised)
        wanted = self.distiller.predict(noised, Mode.TEACHER)
        squares[OUTPUT] = mean_squares(self.distiller.predict(noised, Mode.STUDENT), wanted)
        self._relative_errors.update(squares, len(batch["index"]))

    def _log_errors(self, prefix: str) -> None:
        errors = self._relative_errors.compute()
        output = errors.pop(OUTPUT)
        self.log_dict({f"{prefix}/relative_l2/{path}": error for path, error in errors.items()})
        self.log(f"{prefix}/site_relative_l2", sum(errors.values()) / len(errors), prog_bar=True)
        self.log(f"{prefix}/output_relative_l2", output, prog_bar=True)
        if self.trainer.state.fn != TrainerFn.FITTING and self.untrained() is not None:
            self.log(f"{prefix}/untrained", 1.0)

    def draw_latents(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """The student's samples in model space."""
        set_mode(self.shells.values(), Mode.STUDENT)
        return super().draw_latents(batch, index)

    def draw_teacher(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """The teacher's images, from the same starting noise."""
        return self.diffusion.decode(self.draw_teacher_latents(batch, index))

    def draw_teacher_latents(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """The teacher's samples in model space, from the same starting noise."""
        set_mode(self.shells.values(), Mode.TEACHER)
        return super().draw_latents(batch, index)
