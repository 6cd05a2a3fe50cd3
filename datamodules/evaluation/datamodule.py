"""ReForm-Eval (Li et al., arXiv 2310.02569) for any image-text model: one suite of tasks, put in one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.allowed import AllowedSamples
from datamodules.conversations.chat_options import ChatOptions
from datamodules.conversations.instruction_batch import joined_puts
from datamodules.evaluation.check import Checked, Looked, check_samples
from datamodules.evaluation.dataset import Asker, ReformEvalDataset
from datamodules.evaluation.protocol_options import ProtocolOptions
from datamodules.evaluation.settings import settings_of
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.write import write_published
from datamodules.process import ProcessDataModule
from datamodules.sampler import ReportingLoader, ResumableSampler, derive_seed
from datamodules.sources.records import digest
from sparsight.common.disk.loading import Loading
from sparsight.common.errors import ConfigurationError, require
from sparsight.common.moved import takes_former_options
from sparsight.diffusion.model.identity import tokenizer_hash
from sparsight.evaluation.reform_eval.identity import suite_hash
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.put import Put
from sparsight.lvlm.model.processor import Based, check_template, load_processor


@takes_former_options
class ReformEvalDataModule(ProcessDataModule):
    """Questions of several tasks for ``sparsight test``, answered by writing, by likelihood, or both.

    By likelihood, every option is weighed as the answer and none is shown. By generation, options are shown with marks,
    and the mark that the model writes is its choice; open questions and captions are always written, so they are left
    out where only likelihoods are asked for.

    Args:
        tasks: The suite; names must differ.
        model: Folder or hub id of the model whose processor is used; the evaluated module's own if not given.
        protocol: How questions are put.
        batch_size: Questions a batch and process.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Decides order of options, marks, and ``limit``.
        limit: Use at most this many samples of each task, drawn with the seed; a dialogue is one and stays whole.
        allowed: How many samples of a task may be unusable; these are left out, and listed in the report. Above it
            nothing is asked.
        chat: How the processor writes questions. Where its template has a model think first, ``protocol.new_tokens``
            must have room for that, and no answer is begun.
        loading: How the processor is read; the evaluated module's own if ``model`` is not given.

    Attributes:
        chat: The model's form of conversations, once ``setup`` has run.

    Raises:
        ValueError: An option is out of range, or names of tasks are equal.
    """

    wing = "image-text"

    def __init__(
        self,
        tasks: list[EvaluationTask],
        model: str | None = None,
        protocol: ProtocolOptions = ProtocolOptions(),
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        allowed: AllowedSamples = AllowedSamples(),
        chat: ChatOptions = ChatOptions(),
        loading: Loading = Loading(),
    ) -> None:
        super().__init__(num_workers=num_workers)
        require(bool(tasks), "tasks", tasks, "one or more")
        require(batch_size >= 1, "batch_size", batch_size, "1 or more")
        require(allowed.corrupt_share < 1, "allowed.corrupt_share", allowed.corrupt_share, "0 to below 1")
        require(limit is None or limit >= 1, "limit", limit, "1 or more, or null")
        repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
        if repeated:
            raise ValueError(f"tasks have the same name: {', '.join(repeated)}; give each its own")
        self.protocol = protocol.protocol(seed)
        if self.protocol.methods == ("likelihood",) and all(task.formulation != "SingleChoice" for task in tasks):
            raise ValueError("no task has options to weigh: add generation to protocol.methods")
        self.tasks = tasks
        self.model = model
        self.batch_size = batch_size
        self.limit = limit
        self.max_corrupt_share = allowed.corrupt_share
        self.chat_options = chat
        self.pretrained_options = loading.source
        self.chat: ChatFormat | None = None
        self._looked: list[Looked] = []  # samples of each task
        self._finished: Callable[[], Collection[str]] | None = None
        self._carries = False

    def check_paths(self) -> None:
        """See that the files of the tasks are there, and that of a chat template."""
        for task in self.tasks:
            task.check_paths()
        check_template(self.chat_options.template)

    def prepare_data(self) -> None:
        """Download what the tasks need, in one process a machine."""
        for task in self.tasks:
            task.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load the processor, open the tasks and see which samples can be used.

        Raises:
            FileNotFoundError: Files of a task or the model are missing.
            ValueError: The processor cannot serve, ``stage`` is not ``test``, or more samples of a task cannot be used
                than is allowed; the message names the first of them.
        """
        if stage not in ("test", None):
            raise ValueError(
                f"{type(self).__name__} holds an evaluation, nothing to fit on or predict: use `sparsight test`"
            )
        if self.chat is None:
            self.chat = ChatFormat(self._load_processor(), options=self.chat_options.template_kwargs)
        if not self._looked:
            rank_zero_info(f"looking at the samples of {len(self.tasks)} tasks before any is asked about")
            self._looked = [self._check(number) for number in range(len(self.tasks))]

    def _load_processor(self) -> Any:
        if self.model is not None:
            return load_processor(self.model, **self.chat_options.processor_changes, **self.pretrained_options)
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        if not isinstance(module, Based):
            raise ValueError("no model says how to write questions; set data.model to a model's folder or hub id")
        return load_processor(module.base, **self.chat_options.processor_changes, **module.source)

    @property
    def _checked(self) -> list[dict[int, Checked]]:
        """Usable samples of each task, by position."""
        return [looked.usable for looked in self._looked]

    def left_out(self) -> dict[str, list[str]]:
        """What is wrong with samples that are not asked about, by the names of their tasks."""
        return {task.name: each.left_out for task, each in zip(self.tasks, self._looked, strict=True) if each.left_out}

    def _check(self, number: int) -> Looked:
        """The samples of a task that are used."""
        task = self.tasks[number]
        task.open()
        dialogues = task.dialogues()
        order = np.random.default_rng(derive_seed(self.protocol.seed, number)).permutation(len(dialogues))
        drawn = sorted(index for place in order[: self.limit] for index in dialogues[place])
        if not drawn:
            raise ValueError(f"task {task.name} has no samples; check its files and options")
        assert self.chat is not None
        asker = Asker(self.tasks, chat=self.chat, protocol=self.protocol)
        share = self.max_corrupt_share
        return check_samples(asker, number, drawn, max_corrupt_share=share, workers=self.num_workers)

    def leave_out(self, finished: Callable[[], Collection[str]]) -> None:
        """Do not ask again what was answered before.

        Args:
            finished: Gives keys of questions (``sparsight.evaluation.questions.question.question_key``); called
                when they are about to be asked.
        """
        self._finished = finished

    def questions(self) -> dict[str, str]:
        """Keys of all questions, in their order, with a hash of what each asks: instructions, texts and pixels."""
        dataset = self._dataset()
        return {
            dataset.key(place): self._checked[place.task][place.position].content
            for method in self.protocol.methods
            for place in dataset.places(method)
        }

    def facts(self) -> dict[str, Any]:
        """What answers depend on beside the model, as plain data."""
        tasks = [
            {"name": task.name, "dimension": task.dimension, "formulation": task.formulation, "samples": len(checked)}
            | {"hash": digest(map(tuple, checked.values()))}
            | ({"rule": task.rule} if task.rule else {})
            for task, checked in zip(self.tasks, self._checked, strict=True)
        ]
        protocol = asdict(self.protocol) | {"suite_hash": suite_hash()}
        return {"protocol": protocol, "tasks": tasks, "processor": self._processor_hash()}

    def _processor_hash(self) -> str:
        """Covers what makes tokens and pixels of a question, whether it was saved with the model or changed here."""
        assert self.chat is not None
        processor = self.chat.processor
        told = self.chat_options
        changes = str(told.processor_options) + (str(told.template_kwargs) if told.template_kwargs else "")
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

    def suite(self) -> dict[str, Any]:
        """What every task was made with and the instructions it is put with, by its name."""
        dataset = self._dataset()
        return {task.name: settings_of(task, dataset.methods(task)) for task in self.tasks}

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
            source = type(task if task.source is None else task.source).__name__
            write_published(task, path, source=source, seed=task.seed)
            found[path] = len(task)
        return found

    def test_dataloader(self) -> ReportingLoader:
        """Batches of questions, none of them twice unless there are fewer than processes.

        Raises:
            ConfigurationError: Nothing would keep the answers.
        """
        if self._finished is None:
            raise ConfigurationError(
                "nothing keeps the answers: add callbacks.ReformEvalReport to the callbacks of the trainer"
            )
        dataset = self._dataset(self._finished())
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, shuffle=False, drop_last=False)
        return ReportingLoader(dataset, sampler=sampler, batch_size=None, **self._loader_options(_as_it_is))

    def example(self) -> dict[str, Any] | None:
        """Model inputs of a sample with an image, the same on all processes; none if no task has any."""
        dataset = self._dataset()
        # of each task that is asked about, its first question
        first = {p.task: p for method in reversed(self.protocol.methods) for p in reversed(dataset.places(method))}
        for number, place in sorted(first.items()):
            if self.tasks[number][place.position].images:
                inputs: dict[str, Any] = dataset.batch([place])["inputs"]
                return inputs
        return None

    def carry_questions(self) -> None:
        """Let batches hold their questions as they were put, from now on."""
        self._carries = True

    def joined(self, puts: Sequence[Put]) -> dict[str, Any]:
        """What a batch holds of questions that are put anew."""
        assert self.chat is not None
        return joined_puts(puts, self.chat)

    def _dataset(self, finished: Collection[str] = ()) -> ReformEvalDataset:
        assert self.chat is not None
        return ReformEvalDataset(
            self.tasks,
            ids=[{index: each.id for index, each in checked.items()} for checked in self._checked],
            chat=self.chat,
            protocol=self.protocol,
            batch_size=self.batch_size,
            processes=self._world,
            finished=finished,
            carries=self._carries,
        )


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
