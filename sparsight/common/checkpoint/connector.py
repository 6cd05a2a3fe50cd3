"""How a trainer comes to the checkpoint it starts from: every way of naming one passes here, before data are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn

from sparsight.common.checkpoint.file import local
from sparsight.common.checkpoint.find import SUFFIX, header, newest_last, options_in
from sparsight.common.checkpoint.folder import is_in_parts, verify_folder, writes_parts
from sparsight.common.checkpoint.former import under_todays_names
from sparsight.common.checkpoint.run_record import check_module
from sparsight.common.errors import CheckpointError

PathLike = str | Path


class CheckpointConnector(_CheckpointConnector):
    """Finds, compares and loads checkpoints; Lightning does the rest."""

    def find(self, named: PathLike) -> Path:
        """The checkpoint behind a path, ``last``, ``best`` or ``hpc``.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is an address, there is none, or it is a folder of checkpoints.
        """
        if named == "last":
            return newest_last(self.trainer)
        if named == "best":
            return self._best()
        if named == "hpc":
            if self._hpc_resume_path is None:
                raise CheckpointError(f"there is no hpc_ckpt_*{SUFFIX} in {self.trainer.default_root_dir}")
            return Path(self._hpc_resume_path)
        path = local(named)
        if path.is_dir() and not is_in_parts(path):
            inside = sorted(path.rglob(f"*{SUFFIX}"))
            within = f"{inside[0]}, for example" if inside else f"a {SUFFIX} file"
            raise CheckpointError(f"{path} is a folder: name {within}, or give --resume {path}")
        return path

    def resume_start(self, checkpoint_path: PathLike | None = None, weights_only: bool | None = None) -> None:
        """Load a checkpoint, and nothing but tensors and plain data."""
        path = None if not checkpoint_path else local(checkpoint_path)
        if path is not None and is_in_parts(path):
            self._verify_parts(path)
        if path is None:
            super().resume_start(None, weights_only=True)
            return
        with under_todays_names(path, self.trainer) as read:
            super().resume_start(read, weights_only=True)
        self._ckpt_path = path

    def _select_ckpt_path(
        self, state_fn: TrainerFn, ckpt_path: PathLike | None, model_provided: bool, model_connected: bool
    ) -> PathLike | None:
        """Choose the checkpoint, and compare it with the module before data are made."""
        named = self.find(ckpt_path) if ckpt_path is not None and not self._keeps_best(ckpt_path) else ckpt_path
        chosen = super()._select_ckpt_path(
            state_fn, named, model_provided=model_provided, model_connected=model_connected
        )
        if chosen:
            self.compare(local(chosen))
        return chosen

    def compare(self, path: Path) -> None:
        """Compare the trainer's module with a checkpoint by its header.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is damaged, or cannot serve for this verb.
            ConfigurationError: Module or options differ.
        """
        about = header(path)
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and not about.resumable:
            raise CheckpointError(f"{path} holds weights alone, training cannot go on from it: name another checkpoint")
        if is_in_parts(path) and not writes_parts(self.trainer):
            raise CheckpointError(
                f"{path} is in parts, which ModelParallelStrategy alone reads: use it, or save checkpoints with "
                "save_distributed_checkpoint: false"
            )
        check_module(options_in(path), self.trainer.lightning_module, source=str(path))

    def _keeps_best(self, named: PathLike) -> bool:
        """Whether ``best`` is what this trainer itself has found."""
        callback = self.trainer.checkpoint_callback
        return named == "best" and isinstance(callback, ModelCheckpoint) and bool(callback.best_model_path)

    def _best(self) -> Path:
        newest = newest_last(self.trainer)
        best = header(newest).best
        # a run may have been copied
        found = [path for path in (newest.with_name(Path(best or "").name), Path(best or "")) if path.is_file()]
        if not found:
            raise CheckpointError(f"{newest} does not tell which checkpoint was best: name a file")
        return found[0]

    def _verify_parts(self, path: Path) -> None:
        """All processes go on, or none."""
        fault: Any = None
        if self.trainer.is_global_zero:
            try:
                verify_folder(path)
            except CheckpointError as error:
                fault = str(error)
        fault = self.trainer.strategy.broadcast(fault)
        if fault:
            raise CheckpointError(fault)
