"""What the command says when a verb has ended: what lies where, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sparsight.command.output.following import exporting
from sparsight.common.training.averaging import averaging

CONFIG = "config.yaml"
OUTPUT = "--output"  # of ``check`` alone
_TELLS = ("fit", "validate", "test", "predict")  # the other verbs name their files themselves


@runtime_checkable
class Drawing(Protocol):
    """A callback that writes images."""

    def folder_of(self, trainer: Trainer) -> Path:
        """Where to."""


def ending(trainer: Trainer, verb: str, *, exported: bool) -> list[str]:
    """Lines for the reader; none where a verb tells itself, or wrote nothing.

    Args:
        trainer: As the verb left it.
        verb: Of the command.
        exported: Whether the run has exported its model already.
    """
    logged = log_folder(trainer)
    folder = logged or Path(trainer.default_root_dir)
    if verb not in _TELLS or not folder.is_dir():
        return []
    entries = _entries(folder, folders=logged is not None)
    lines = [f"Written to {folder}: {', '.join(entries)}"] if entries else []
    if verb == "predict":
        drawing = [each for each in trainer.callbacks if isinstance(each, Drawing)]  # type: ignore[attr-defined]
        lines += [f"Images: {each.folder_of(trainer)}" for each in drawing]
    checkpoint = last_checkpoint(trainer)
    if verb == "fit" and checkpoint is not None:
        lines.append(f"Last checkpoint: {checkpoint}")
        if commands := _next(trainer, folder / CONFIG, checkpoint, exported=exported):
            lines += ["Next:", *(f"  {command}" for command in commands)]
    return lines


def after_check(arguments: Sequence[str]) -> list[str]:
    """The command that does in earnest what ``check`` has tried.

    Args:
        arguments: Of the command, ``check`` first.
    """
    kept: list[str] = []
    for before, argument in pairwise(arguments):
        if before != OUTPUT and argument.partition("=")[0] != OUTPUT:
            kept.append(argument)
    return ["Next:", f"  {shlex.join(['sparsight', 'fit', *kept])}"]


def log_folder(trainer: Trainer) -> Path | None:
    """The log folder of this process; Lightning's ``log_dir`` would wait for other processes, which may have ended."""
    logger = trainer.logger
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    return Path(logger.save_dir) if logger is not None and logger.save_dir else None


def last_checkpoint(trainer: Trainer) -> Path | None:
    """The checkpoint that a run would be continued from, if it wrote one."""
    savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    paths = [saver.last_model_path or saver.best_model_path for saver in savers]
    return next((Path(path) for path in paths if path and Path(path).exists()), None)


def _next(trainer: Trainer, config: Path, checkpoint: Path, *, exported: bool) -> list[str]:
    commands = []
    if config.is_file():
        typed = ["--config", str(config)]
        commands.append(shlex.join(["sparsight", "validate", *typed, "--ckpt_path", str(checkpoint)]))
        if not exported:
            commands.append(exporting(typed, str(checkpoint), averaged=averaging(trainer) is not None))
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        commands.append(shlex.join(["tensorboard", "--logdir", str(config.parent)]))
    return commands


def _entries(folder: Path, *, folders: bool) -> list[str]:
    """What a reader may look for, without folders where they may be of other runs; TensorBoard's files once."""
    found = [each for each in sorted(folder.iterdir()) if folders or not each.is_dir()]
    names = [f"{each.name}/" if each.is_dir() else each.name for each in found if not each.name.startswith(".")]
    curves = [name for name in names if name.startswith("events.")]
    return [*(name for name in names if name not in curves), *(["curves for TensorBoard"] if curves else [])]
