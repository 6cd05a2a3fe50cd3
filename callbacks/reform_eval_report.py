"""Keeps the answers of an evaluation as they come, and scores and reports them at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from sparsight.analysis.environment import environment
from sparsight.analysis.journal import Journal, check_about, read_results
from sparsight.distill.processes import process_count
from sparsight.hyperparameters import ConfigurationError
from sparsight.reform_eval.report import write_report
from sparsight.reform_eval.scores import Estimate, ScoreKey, scores_of

_ANSWERS = "answers-*.jsonl"
_BLOCK = 2**24  # bytes read at once
_ORIGIN = ("_name_or_path", "transformers_version")


class ReformEvalReport(Callback):
    """Reports what a model answers to a ReformEvalDataModule: ``report.json``, ``report.md`` and ``dimensions.png``.

    Every answer is on disk as soon as it is there. The same command again goes on with what is not answered yet, on any
    number of processes.

    Args:
        folder: Where the report goes; if not given, a folder in the trainer's root folder, named after the model, for
            each combination of weights, data and protocol.
        resamples: Draws of the bootstrap that intervals come from.

    Raises:
        ValueError: ``resamples`` is below 100.
    """

    def __init__(self, folder: str | None = None, resamples: int = 2000) -> None:
        if resamples < 100:
            raise ValueError(f"resamples is {resamples}; allowed: 100 or more")
        self.folder = None if folder is None else Path(folder)
        self.resamples = resamples
        self._about: dict[str, Any] = {}
        self._before: dict[str, Any] = {}  # answers of earlier runs, the same on all processes
        self._journal: Journal | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out what was answered before, which ends the test where that was another model or other questions.

        Raises:
            ConfigurationError: The data are no ReformEvalDataModule, or the module is no image-text model.
        """
        if stage != "test":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "leave_out") or not hasattr(pl_module, "base_hash"):
            raise ConfigurationError(
                f"{type(self).__name__} needs data of class ReformEvalDataModule and an image-text module such as "
                f"LVLMEvaluation, got {type(data).__name__} and {type(pl_module).__name__}"
            )
        data.leave_out(lambda: self._finished(trainer, pl_module))  # a checkpoint is loaded only later

    def _finished(self, trainer: Trainer, module: Any) -> Collection[str]:
        """Keys of what was answered before, by the same weights to the same questions; opens the journal."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._about = {"model": _model_facts(trainer, module), **data.facts()}
        self._target = self._target_folder(trainer)
        paths = sorted(self._target.glob(_ANSWERS))  # also of processes that there are no more
        for path in paths:
            check_about(path, self._about)
        self._journal = Journal(self._target / _ANSWERS.replace("*", str(trainer.global_rank)), self._about)
        reads = trainer.local_rank == 0  # one process a machine, or all of them would hand all answers around
        found = {key: each for path in paths if reads for key, each in read_results(path).items()}
        self._before = {key: each for part in _everywhere(found) for key, each in part.items()}
        if self._before:
            rank_zero_info(f"{len(self._before)} answers are in {self._target} already and are not computed again")
        return self._before

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers of a batch."""
        assert self._journal is not None
        for key, answer in outputs.items():
            if key not in self._before and key not in self._journal.results:
                self._journal.add(key, answer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the answers of all processes together, score them, and write the report.

        Raises:
            RuntimeError: Answers got lost, although no batch was left out.
        """
        assert self._journal is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found = self._before | {key: each for part in _everywhere(self._journal.results) for key, each in part.items()}
        asked = data.keys()
        answers = [found[key] for key in asked if key in found]
        shortened = isinstance(trainer.limit_test_batches, int) or trainer.limit_test_batches < 1.0
        if len(answers) < len(asked) and not shortened:
            raise RuntimeError(f"{len(asked) - len(answers)} of {len(asked)} answers got lost; the others are kept")
        scores = scores_of(answers, self._about["tasks"], resamples=self.resamples)
        pl_module.log_dict({_logged(key): each.value for key, each in scores.items()})
        if trainer.is_global_zero:
            self._write(data, pl_module.device, answers, asked=len(asked), scores=scores)

    def _write(
        self,
        data: Any,
        device: torch.device,
        answers: list[dict[str, Any]],
        *,
        asked: int,
        scores: Mapping[ScoreKey, Estimate],
    ) -> None:
        extra = {
            "complete": len(answers) == asked,
            "answered": len(answers),
            "asked": asked,
            "environment": environment(device) | _versions(),
            "prompts": data.examples(),
        }
        table = write_report(self._target, about=self._about, extra=extra, answers=answers, scores=scores)
        rank_zero_info(f"{table}\n\nreport: {self._target}")

    def _target_folder(self, trainer: Trainer) -> Path:
        if self.folder is not None:
            return self.folder
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        return Path(trainer.default_root_dir, "reform_eval", f"{self._about['model']['name']}-{digest[:8]}")


def _model_facts(trainer: Trainer, module: Any) -> dict[str, Any]:
    tuned = [] if trainer.ckpt_path is None else [Path(trainer.ckpt_path).stem]
    return {
        "name": "-".join([Path(module.base).name, *tuned]),
        "revision": module.revision,
        "hash": module.base_hash,
        "class": type(module.model).__name__,
        "dtype": str(module.frozen_dtype).removeprefix("torch."),
        "precision": str(trainer.precision),
        "config": _config_hash(module.model),
        "checkpoint": _checkpoint_hash(trainer.ckpt_path),
    }


def _versions() -> dict[str, str]:
    return {"transformers": version("transformers")}


def _config_hash(model: Any) -> str:
    """SHA-256 over a model's configuration, without what says where it comes from."""
    config = {name: each for name, each in model.config.to_dict().items() if name not in _ORIGIN}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _checkpoint_hash(path: str | Path | None) -> str | None:
    """SHA-256 over the files of a checkpoint, which is a file or a folder."""
    if path is None:
        return None
    digest = hashlib.sha256()
    for file in _files(Path(path)):
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    return iter([path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()))


def _everywhere(own: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process has."""
    if process_count() == 1:
        return [own]
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, own)
    return parts


def _logged(key: ScoreKey) -> str:
    return "/".join(part for part in ("test", key.method, key.level, key.name, key.metric) if part)
