"""Lightning's interface to checkpoint files, so that they are whole, checked, local and free of code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import AsyncCheckpointIO, CheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from sparsight.common.checkpoint.file import local, read_checkpoint, write_checkpoint
from sparsight.common.checkpoint.folder import remove_folder
from sparsight.common.errors import CheckpointError, ConfigurationError
from sparsight.common.finite import check_checkpoint


class WholeCheckpointIO(CheckpointIO):
    """Files that appear whole or not at all and are compared with their hash when they are read."""

    def __init__(self) -> None:
        self._whole: tuple[Path, tuple[int, ...]] | None = None

    def was_whole(self, path: Path) -> None:
        """Spare a file that was compared with its hash just now another comparison when it is next loaded."""
        self._whole = (path.resolve(), _state_of(path))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; an earlier one at ``path`` is replaced by a whole one only.

        Raises:
            CheckpointError: The disk does not take it, or ``path`` is an address.
            NonFiniteError: The state holds numbers that are not finite.
            ConfigurationError: Options for a remote storage are given.
        """
        if storage_options is not None:
            raise ConfigurationError("checkpoints are files on this machine: leave storage_options out")
        check_checkpoint(checkpoint)
        write_checkpoint(checkpoint, local(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; only tensors and plain data are taken, whatever ``weights_only`` says.

        Raises:
            CheckpointError: See ``read_checkpoint``.
        """
        if weights_only is False:
            raise CheckpointError("checkpoints are read with weights_only=True alone, because others run code")
        file, known = local(path), self._whole
        self._whole = None
        verified = known is not None and file.is_file() and known == (file.resolve(), _state_of(file))
        return read_checkpoint(file, map_location, verified=verified)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a file, or a folder of parts."""
        found = Path(path)
        if found.is_dir() and not found.is_symlink():
            remove_folder(found)
        else:
            found.unlink(missing_ok=True)


def _state_of(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
    """What ModelCheckpoint does with ``save_last: link``, but so that the name leads to a checkpoint at every moment.

    Args:
        trainer: Of all processes.
        filepath: The checkpoint.
        linkpath: The name that is to lead to it.
    """
    link = Path(linkpath)
    if trainer.is_global_zero and os.path.abspath(filepath) != os.path.abspath(link):
        part = link.with_name(f".{link.stem}.{os.getpid()}.part{link.suffix}")
        part.unlink(missing_ok=True)
        part.symlink_to(os.path.relpath(filepath, link.parent))
        if link.is_dir() and not link.is_symlink():  # a folder of parts, which no rename replaces
            remove_folder(link)
        os.replace(part, link)
    trainer.strategy.barrier()


class OrderedCheckpointIO(AsyncCheckpointIO):
    """Lightning's writing in a thread, which removes earlier checkpoints only once later ones are whole."""

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Take a place behind what is still to be written."""
        self._ensure_setup()
        assert self._executor is not None

        def remove() -> None:
            if self._error is None and self.checkpoint_io is not None:
                self.checkpoint_io.remove_checkpoint(*args, **kwargs)

        self._executor.submit(remove)


def with_whole_files(given: CheckpointIO | None) -> CheckpointIO:
    """What a trainer writes checkpoints with: our own, or the user's with our own inside where it wraps another."""
    if given is None:
        return WholeCheckpointIO()
    if type(given) is AsyncCheckpointIO:
        return OrderedCheckpointIO(given.checkpoint_io or WholeCheckpointIO())
    if isinstance(given, _WrappingCheckpointIO) and given.checkpoint_io is None:
        given.checkpoint_io = WholeCheckpointIO()
    return given
