"""Keeps the answers of an evaluation as they come, and scores and reports them at the end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from sparsight.common.datamodule import datamodule_of
from sparsight.common.disk.journal import Journal, check_about, read_results
from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import files_hash, state_hash
from sparsight.common.measure.environment import environment
from sparsight.common.plain import setting
from sparsight.common.training.processes import everywhere
from sparsight.evaluation.questions.scores import Estimate, ScoreKey
from sparsight.evaluation.reform_eval.report import FILE, read_report, write_report, written_to
from sparsight.evaluation.reform_eval.scores import scores_of

_ANSWERS = "answers-*.jsonl"
_ORIGIN = ("_name_or_path", "transformers_version")


@runtime_checkable
class Questions(Protocol):
    """Data that ask questions, each under a key."""

    def leave_out(self, finished: Callable[[], Collection[str]]) -> None:
        """Do not ask again what has these keys; called when the questions are about to be asked."""
        ...

    def questions(self) -> Mapping[str, str]:
        """Keys of all questions, in their order, with a hash of what each asks."""
        ...

    def facts(self) -> dict[str, Any]:
        """What answers depend on beside the model, as plain data."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A module with an image-text model, which it tells from others."""

    base: str
    base_hash: str


class ReformEvalReport(Callback):
    """Reports what a model answers to a ReformEvalDataModule: ``report.json``, ``report.md`` and ``dimensions.png``.

    Every answer is on disk as soon as it is there. The same command again goes on with what is not answered yet, on any
    number of processes. An answer is used again as long as its question is the same: after a task was mended, or its
    limit changed, only what is new or different is asked.

    Args:
        folder: Where the report goes; if not given, a folder in the trainer's root folder, named after the model, for
            each combination of weights, processor, protocol and names of tasks.
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
        self._questions: dict[str, str] = {}  # keys of all questions, with hashes of what they ask
        self._before: dict[str, Any] = {}  # answers of earlier runs, the same on all processes
        self._journal: Journal | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out what was answered before, which ends the test where that was another model or other questions.

        Raises:
            ConfigurationError: The data are no ReformEvalDataModule, or the module is no image-text model.
        """
        if stage != "test":
            return
        data = datamodule_of(trainer)
        if not isinstance(data, Questions) or not isinstance(pl_module, Answering):
            raise ConfigurationError(
                f"{type(self).__name__} needs data of class ReformEvalDataModule and an image-text module such as "
                f"LVLMEvaluation, got {type(data).__name__} and {type(pl_module).__name__}"
            )
        data.leave_out(lambda: self._finished(trainer, pl_module))  # a checkpoint is loaded only later

    def _finished(self, trainer: Trainer, module: Any) -> Collection[str]:
        """Keys of what was answered before, by the same weights to the same questions; opens the journal."""
        data = datamodule_of(trainer)
        self._about = {"model": _model_facts(trainer, module), **data.facts()}
        self._questions = data.questions()
        self._target = self._target_folder(trainer)
        begun = {name: each for name, each in self._about.items() if name != "tasks"}  # a question can be mended
        paths = sorted(self._target.glob(_ANSWERS))  # also of processes that there are no more
        for path in paths:
            check_about(path, begun)
        self._journal = Journal(self._target / _ANSWERS.replace("*", str(trainer.global_rank)), begun)
        reads = trainer.local_rank == 0  # one process a machine, or all of them would hand all answers around
        kept = {name: each for path in paths if reads for name, each in read_results(path).items()}
        self._before = {key: each for part in everywhere(self._usable(kept)) for key, each in part.items()}
        if self._before:
            rank_zero_info(f"{len(self._before)} answers are in {self._target} already and are not computed again")
        outdated = [each for name, each in kept.items() if self._is_outdated(name)]
        if outdated:
            tasks = ", ".join(sorted({each["task"] for each in outdated}))
            rank_zero_info(
                f"{len(outdated)} answers in {self._target} are to questions that have changed since, of {tasks}: "
                "these questions are asked again, the old answers stay in the files"
            )
        return self._before

    def _name(self, key: str) -> str:
        """What an answer is kept under: an answer to a question that has changed must not be found."""
        return f"{self._questions[key]}/{key}"

    def _usable(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the kept answers that are to our questions, by the keys of these."""
        return {key: kept[name] for key in self._questions if (name := self._name(key)) in kept}

    def _is_outdated(self, name: str) -> bool:
        key = name.partition("/")[2]
        return key in self._questions and key not in self._before

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
            if key not in self._before and self._name(key) not in self._journal.results:
                self._journal.add(self._name(key), answer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the answers of all processes together, score them, and write the report.

        Raises:
            RuntimeError: Answers got lost, although no batch was left out.
        """
        assert self._journal is not None
        data = datamodule_of(trainer)
        found = dict(self._before)
        for part in everywhere(self._usable(self._journal.results)):
            found |= part
        asked = self._questions
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
            "suite": data.suite(),
            "left_out": data.left_out(),
        }
        _set_aside(self._target, self._about["tasks"])
        table = write_report(self._target, about=self._about, extra=extra, answers=answers, scores=scores)
        rank_zero_info(f"{table}\n\n{written_to(self._target)}")

    def _target_folder(self, trainer: Trainer) -> Path:
        if self.folder is not None:
            return self.folder
        names = [task["name"] for task in self._about["tasks"]]  # a mended task is found again
        digest = hashlib.sha256(json.dumps(self._about | {"tasks": names}, sort_keys=True).encode()).hexdigest()
        return Path(trainer.default_root_dir, "reform_eval", f"{self._about['model']['name']}-{digest[:8]}")


def _model_facts(trainer: Trainer, module: Any) -> dict[str, Any]:
    tuned = [] if trainer.ckpt_path is None else [Path(trainer.ckpt_path).stem]
    return {
        "name": "-".join([_name(module.base), *tuned]),
        "revision": setting(module.model.config, "_commit_hash") or module.revision,
        "hash": module.base_hash,
        "class": type(module.model).__name__,
        "dtype": str(module.frozen_dtype).removeprefix("torch."),
        "precision": str(trainer.precision),
        "config": _config_hash(module.model),
        "checkpoint": _checkpoint_hash(trainer.ckpt_path),
        **_method_facts(module),
    }


def _method_facts(module: Any) -> dict[str, Any]:
    """What works in the model or beside it while it answers, if anything does."""
    found: dict[str, Any] = {}
    recipe, vicrop = module.recipe, module.evaluation.vicrop
    if recipe is not None:
        found["recipe"] = recipe.record()
        if recipe.weighted:
            from sparsight.lvlm.methods.learned.weights import state_of  # imports models of transformers

            found["recipe_weights"] = state_hash(state_of(recipe.weighted))
    if vicrop is not None:
        found["vicrop"] = asdict(vicrop)
    return found


def _name(base: str) -> str:
    """Last part of a hub id, or of where a folder such as ``.`` is."""
    return Path(os.path.abspath(base) if Path(base).is_dir() else base).name


def _versions() -> dict[str, str]:
    return {"transformers": version("transformers")}


def _config_hash(model: Any) -> str:
    """SHA-256 over a model's configuration, without what says where it comes from."""
    config = {name: each for name, each in model.config.to_dict().items() if name not in _ORIGIN}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _checkpoint_hash(path: str | Path | None) -> str | None:
    """SHA-256 over the files of a checkpoint, which is a file or a folder."""
    return None if path is None else files_hash(_files(Path(path)))


def _files(path: Path) -> Iterator[Path]:
    return iter([path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()))


def _set_aside(folder: Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Move a finished report on other questions into a folder inside, named after their hash."""
    try:
        before = read_report(folder)
    except (FileNotFoundError, ValueError):
        return
    others = before["about"]["tasks"]
    if not before["complete"] or others == tasks:
        return
    target = folder / f"before-{hashlib.sha256(json.dumps(others).encode()).hexdigest()[:8]}"
    target.mkdir(exist_ok=True)
    for name in ("dimensions.png", "report.md", FILE):  # what they are found by comes last
        if (folder / name).exists():
            (folder / name).replace(target / name)
    rank_zero_info(f"the report on questions that have changed since is kept in {target}")


def _logged(key: ScoreKey) -> str:
    return "/".join(part for part in ("test", key.method, key.level, key.name, key.metric) if part)
