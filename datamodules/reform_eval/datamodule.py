"""ReForm-Eval (Li et al., arXiv 2310.02569) for any image-text model: one suite of tasks, put in one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import ProcessDataModule, require
from datamodules.instruction import read_processor
from datamodules.records import CorruptRecord, digest
from datamodules.reform_eval.dataset import Protocol, ReformEvalDataset
from datamodules.reform_eval.task import EvaluationTask
from datamodules.reform_eval.write import write_published
from datamodules.sampler import ReportingLoader, ResumableSampler, derive_seed
from sparsight.diffusion.identity import tokenizer_hash
from sparsight.lvlm.chat import ChatFormat
from sparsight.reform_eval.perturb import MARKS, Marks, Perturbation
from sparsight.reform_eval.sample import Method

_SHOWN = 5  # problems of a message


class ReformEvalDataModule(ProcessDataModule):
    """Questions of several tasks for ``sparsight test``, answered by writing, by likelihood, or both.

    By likelihood, every option is weighed as the answer and none is shown. By generation, options are shown with marks,
    and the mark that the model writes is its choice; open questions and captions are always written, so they are left
    out where only likelihoods are asked for.

    Args:
        tasks: The suite; names must differ.
        model: Folder or hub id of the model whose processor is used; the evaluated module's own if not given.
        methods: ``likelihood``, ``generation``, or both; likelihoods alone if not given.
        runs: How often every sample is put, each time in another way: 5 tells how unstable answers are.
        perturbation: What changes from run to run.
        marks: Marks of options: ``upper``, ``lower``, ``number``, or ``random`` for another kind each time.
        example: Show the form of an answer, by a question that needs no picture, before a choice is asked for.
        new_tokens: Most tokens of a written answer.
        batch_size: Questions a batch and process.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Decides order of options, marks, and ``limit``.
        limit: Use at most this many samples of each task, drawn with the seed.
        chat_template: Jinja template, or a file of one, in place of the processor's own.
        processor_options: Options of processor and image processor in place of the saved ones.
        revision: Git revision of a hub model.
        trust_remote_code: Run code that comes with the model.

    Attributes:
        chat: The model's form of conversations, once ``setup`` has run.

    Raises:
        ValueError: An option is out of range, or names of tasks are equal.
    """

    def __init__(
        self,
        tasks: list[EvaluationTask],
        model: str | None = None,
        methods: list[Method] | None = None,
        runs: int = 1,
        perturbation: Perturbation | None = None,
        marks: Marks | Literal["random"] = "upper",
        example: bool = True,
        new_tokens: int = 30,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        chat_template: str | None = None,
        processor_options: dict[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(num_workers=num_workers)
        methods = ["likelihood"] if methods is None else methods
        require(bool(tasks), "tasks", tasks, "one or more")
        require(bool(methods) and len(set(methods)) == len(methods), "methods", methods, "likelihood, generation")
        for name, value in (("runs", runs), ("new_tokens", new_tokens), ("batch_size", batch_size)):
            require(value >= 1, name, value, "1 or more")
        require(num_workers >= 0, "num_workers", num_workers, "0 or more")
        require(limit is None or limit >= 1, "limit", limit, "1 or more, or null")
        repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
        if repeated:
            raise ValueError(f"tasks have the same name: {', '.join(repeated)}; give each its own")
        if methods == ["likelihood"] and all(task.formulation != "SingleChoice" for task in tasks):
            raise ValueError("no task has options to weigh: add generation to methods")
        self.tasks = tasks
        self.model = model
        self.protocol = Protocol(
            tuple(methods), runs, perturbation or Perturbation(), marks, example, new_tokens=new_tokens, seed=seed
        )
        self.batch_size = batch_size
        self.limit = limit
        self.processor_changes: dict[str, Any] = {"chat_template": chat_template, "options": processor_options}
        self.pretrained_options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.chat: ChatFormat | None = None
        self._ids: list[dict[int, str]] = []
        self._finished: Callable[[], Collection[str]] = tuple

    def prepare_data(self) -> None:
        """Download what the tasks need, in one process a machine."""
        for task in self.tasks:
            task.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load the processor, open the tasks and see that every sample can be used.

        Raises:
            FileNotFoundError: Files of a task or the model are missing.
            ValueError: The processor cannot serve, ``stage`` is not ``test``, or samples cannot be used; the message
                names the first of them.
        """
        if stage not in ("test", None):
            raise ValueError(
                f"{type(self).__name__} holds an evaluation, nothing to fit on or predict: use `sparsight test`"
            )
        if self.chat is None:
            self.chat = ChatFormat(self._load_processor())
        if not self._ids:
            self._ids = [self._checked(task) for task in self.tasks]

    def _load_processor(self) -> Any:
        if self.model is not None:
            return read_processor(self.model, **self.processor_changes, **self.pretrained_options)
        module: Any = getattr(self.trainer, "lightning_module", None)
        if not hasattr(module, "base"):
            raise ValueError("no model says how to write questions; set data.model to a model's folder or hub id")
        return read_processor(module.base, **self.processor_changes, **module.source)

    def _checked(self, task: EvaluationTask) -> dict[int, str]:
        """Ids of the samples that are used, by their positions."""
        task.open()
        number = self.tasks.index(task)
        order = np.random.default_rng(derive_seed(self.protocol.seed, number)).permutation(len(task))[: self.limit]
        ids: dict[int, str] = {}
        problems = []
        known: dict[str, int] = {}
        for index in np.sort(order).tolist():
            try:
                sample = task.outline(index)
            except CorruptRecord as error:
                problems.append(str(error))
                continue
            ids[index] = sample.id
            if "generation" in self.protocol.methods and len(sample.options) > self._most_options:
                problems.append(f"sample {sample.id} has {len(sample.options)} options, more than there are marks")
            if ids[index] in known:
                problems.append(f"samples {known[ids[index]]} and {index} have the same id {ids[index]!r}")
            known[ids[index]] = index
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            raise ValueError(
                f"{len(problems)} of {len(order)} samples of task {task.name} cannot be used: {shown}. Repair them or "
                "remove them from the data"
            )
        if not ids:
            raise ValueError(f"task {task.name} has no samples; check its files and options")
        return ids

    @property
    def _most_options(self) -> int:
        marks = self.protocol.marks
        return max(map(len, MARKS.values())) if marks == "random" else len(MARKS[marks])

    def leave_out(self, finished: Callable[[], Collection[str]]) -> None:
        """Do not ask again what was answered before.

        Args:
            finished: Gives keys of units, as :func:`sparsight.reform_eval.answer.unit_key` makes them; called when the
                questions are about to be asked.
        """
        self._finished = finished

    def keys(self) -> list[str]:
        """Keys of all units, in their order."""
        dataset = self._dataset()
        return [dataset.key(place) for method in self.protocol.methods for place in dataset.places(method)]

    def facts(self) -> dict[str, Any]:
        """What answers depend on beside the model, as plain data."""
        tasks = [
            {"name": task.name, "dimension": task.dimension, "formulation": task.formulation, "samples": len(ids)}
            | {"hash": digest([task.fingerprint(), str(task.instructions), sorted(ids.items())])}
            for task, ids in zip(self.tasks, self._ids, strict=True)
        ]
        return {"protocol": asdict(self.protocol), "tasks": tasks, "processor": self._processor_hash()}

    def _processor_hash(self) -> str:
        """Covers what makes tokens and pixels of a question, whether it was saved with the model or changed here."""
        assert self.chat is not None
        processor = self.chat.processor
        changes = str(self.processor_changes["options"])
        return digest(
            [str(processor.chat_template), processor.to_json_string(), tokenizer_hash(processor.tokenizer), changes]
        )

    def examples(self) -> dict[str, str]:
        """The first prompt of every task by every method, as the model sees it."""
        dataset = self._dataset()
        found: dict[str, str] = {}
        for method in self.protocol.methods:
            for place in dataset.places(method):
                name = f"{method}/{self.tasks[place.task].name}"
                if name not in found:
                    found[name] = dataset.describe(place)
        return found

    def describe(self, split: str, index: int) -> str:
        """A question as the model sees it, with its candidates or the right answer.

        Args:
            split: ``test``.
            index: Its position among all, those of the first method first.

        Raises:
            CorruptRecord: It cannot be used.
            ValueError: There is no such question.
        """
        dataset = self._dataset()
        places = [place for method in self.protocol.methods for place in dataset.places(method)]
        require(split == "test", "split", split, "test")
        require(0 <= index < len(places), "index", index, f"0 to {len(places) - 1}")
        return dataset.describe(places[index])

    def store(self, folder: Path) -> dict[Path, int]:
        """Write every task, whole, as ``<name>.json`` in the published format; no model is needed.

        Returns:
            Files, with their numbers of samples.

        Raises:
            CorruptRecord: A sample cannot be read.
        """
        found = {}
        for task in self.tasks:
            path = folder / f"{task.name}.json"
            source = type(getattr(task, "source", task)).__name__
            write_published(task, path, source=source, seed=getattr(task, "seed", None))
            found[path] = len(task)
        return found

    def test_dataloader(self) -> ReportingLoader:
        """Batches of questions, none of them twice unless there are fewer than processes."""
        dataset = self._dataset(self._finished())
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, shuffle=False, drop_last=False)
        return ReportingLoader(dataset, sampler=sampler, batch_size=None, **self._loader_options(_as_it_is))

    def example(self) -> dict[str, Any] | None:
        """Model inputs of a sample with a picture, the same on all processes; none if no task has any."""
        dataset = self._dataset()
        # of each task that is asked about, its first question
        first = {p.task: p for method in reversed(self.protocol.methods) for p in reversed(dataset.places(method))}
        for number, place in sorted(first.items()):
            if self.tasks[number][place.position].images:
                inputs: dict[str, Any] = dataset.batch([place])["inputs"]
                return inputs
        return None

    def _dataset(self, finished: Collection[str] = ()) -> ReformEvalDataset:
        assert self.chat is not None
        return ReformEvalDataset(
            self.tasks,
            ids=self._ids,
            chat=self.chat,
            protocol=self.protocol,
            batch_size=self.batch_size,
            processes=self._world,
            finished=finished,
        )


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
