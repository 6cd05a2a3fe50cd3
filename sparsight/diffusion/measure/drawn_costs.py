"""What is replaced in a model, at the size that it draws: told, and kept beside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsight.common.disk.files import write_text
from sparsight.diffusion.measure.report import COSTS, ReplacementReport, replacement_report
from sparsight.diffusion.model.diffusion_model import DiffusionModel


def drawn_report(model: DiffusionModel) -> ReplacementReport:
    """What is replaced, at the size that is drawn."""
    return replacement_report(model.denoiser, size=None if model.size is None else tuple(model.size))


def write_costs(trainer: Any, model: DiffusionModel) -> None:
    """What is replaced, as ``costs.json`` in the log folder; all processes must ask.

    Args:
        trainer: Of a run that begins; of a dry one nothing is kept.
        model: Has the mixers.
    """
    folder = trainer.log_dir  # a broadcast
    if folder and trainer.logger and trainer.is_global_zero and not trainer.fast_dev_run:
        write_text(Path(folder) / COSTS, drawn_report(model).json())
