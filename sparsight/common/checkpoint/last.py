"""The checkpoint named ``last``, brought up to date where a run was killed between a checkpoint and it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sparsight.common.checkpoint.find import LAST, SUFFIX, header
from sparsight.common.errors import CheckpointError


def renew_last(trainer: Trainer) -> None:
    """Let ``last`` be the checkpoint that training goes on from, if that is newer and in the same folder.

    A run that is over already writes no checkpoint any more, so nothing else would. Folders of parts stay as they are.

    Args:
        trainer: About to train; one process calls this, after all have chosen their checkpoint.
    """
    if not trainer.ckpt_path:
        return
    path = Path(trainer.ckpt_path)
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    mine = [saver for saver in savers if saver.save_last and saver.dirpath and path.parent == Path(saver.dirpath)]
    last = path.with_name(f"{LAST}{SUFFIX}")
    if not mine or not path.is_file() or last.is_dir() or not _is_older(last, path):
        return
    part = last.with_name(f".{last.stem}.{os.getpid()}.part{last.suffix}")
    part.unlink(missing_ok=True)
    if mine[0].save_last == "link":
        part.symlink_to(path.name)
    else:
        try:
            os.link(path, part)
        except OSError:  # a file system without links
            shutil.copyfile(path, part)
    os.replace(part, last)
    mine[0].last_model_path = str(last)  # or it would take the file for another run's, and write last-v1


def _is_older(last: Path, path: Path) -> bool:
    try:
        return (header(last).step or 0) < (header(path).step or 0)
    except (CheckpointError, FileNotFoundError):
        return True
