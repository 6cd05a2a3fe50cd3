"""Batches of questions to a model: the order is fixed, so that processes and resumed runs agree about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.conversations.instruction_batch import join_prompts
from datamodules.conversations.instruction_dataset import BACKGROUND
from datamodules.evaluation.task import EvaluationTask
from datamodules.images.image_dataset import flatten_image
from datamodules.sources.records import CorruptRecord
from sparsight.evaluation.questions.question import Method, Question, question_key
from sparsight.evaluation.questions.variant import Marks, Perturbation, variant
from sparsight.evaluation.reform_eval.prompt import Prompt
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.conversation import Conversation, Turn
from sparsight.lvlm.chat.put import Put


@dataclass(frozen=True)
class Protocol:
    """How questions are put.

    Args:
        methods: Whether answers are written, weighed, or both one after the other.
        runs: How often every sample is put.
        perturbation: What changes from run to run.
        marks: Kind of the options' marks.
        example: Show the form of an answer before a choice is asked for.
        new_tokens: Most tokens of a written answer.
        seed: Of what changes from run to run.
    """

    methods: tuple[Method, ...]
    runs: int
    perturbation: Perturbation
    marks: Marks | Literal["random"]
    example: bool
    new_tokens: int
    seed: int


class Place(NamedTuple):
    """Where a question comes from, and by which method it is put."""

    method: Method
    task: int
    position: int
    sample: str
    run: int


class Asked(NamedTuple):
    """A question as inputs of the model, with the tokens of the options that are weighed."""

    question: Question
    inputs: dict[str, torch.Tensor]
    candidates: list[list[int]]
    put: Put


class Asker:
    """Puts samples to a model.

    Args:
        tasks: Opened tasks.
        chat: The model's form.
        protocol: How questions are put.
    """

    def __init__(self, tasks: Sequence[EvaluationTask], *, chat: ChatFormat, protocol: Protocol) -> None:
        self.tasks = tasks
        self.chat = chat
        self.protocol = protocol

    def methods(self, task: EvaluationTask) -> list[Method]:
        """Those by which a task's questions are put; choices alone can be weighed."""
        return [each for each in self.protocol.methods if each == "generation" or task.formulation == "SingleChoice"]

    def ask(self, place: Place, sample: Sample) -> Asked:
        """A sample as inputs of the model.

        Raises:
            CorruptRecord: Images, template, processor or tokenizer cannot serve; the message says of which sample.
        """
        try:
            question, prompt = self.put(place, sample)
            images = shown_images(sample.images if prompt.images is None else prompt.images)
            if place.method == "generation":
                put = Put(prompt.turns, images, begun=prompt.begun)
            else:
                assert sample.answer is not None and question.variant is not None
                options = self.tasks[place.task].candidates(sample, question.variant)
                turns = (*prompt.turns, Turn("assistant", options[sample.answer]))
                put = Put.weighed(Conversation(turns, images, options, sample.answer))
            return Asked(question, *put.encode(self.chat), put)
        except ValueError as error:
            raise CorruptRecord(f"{self.tasks[place.task].where(place.position)}: {error}") from error

    def put(self, place: Place, sample: Sample) -> tuple[Question, Prompt]:
        """A sample as it is put in one run."""
        task, protocol = self.tasks[place.task], self.protocol
        instructions = task.asked_by(place.method, with_images=bool(sample.images))
        put = variant(
            seed=protocol.seed,
            task=task.name,
            sample=sample.id,
            run=place.run,
            instructions=len(instructions),
            wordings=len(sample.questions),
            options=len(sample.options),
            marks=protocol.marks,
            perturbation=protocol.perturbation,
        )
        instruction = instructions[put.instruction]
        prompt = task.prompt(sample, put, instruction=instruction, method=place.method, example=protocol.example)
        question = Question(
            task=task.name,
            sample=sample.id,
            text=sample.questions[put.wording],
            images=len(sample.images),
            options=sample.options,
            answer=sample.answer,
            references=sample.references,
            formulation=task.formulation,
            position=place.position,
            dialogue=sample.dialogue,
            turn=sample.turn,
            run=place.run,
            variant=put,
            rule=task.rule,
            categories=sample.categories,
        )
        return question, prompt


class ReformEvalDataset(Asker, Dataset):
    """One batch of questions at each position, all put by one method.

    Args:
        tasks: Opened tasks.
        ids: Ids of the samples of each task that are asked about, by their position in it.
        chat: The model's form.
        protocol: How questions are put.
        batch_size: Questions of a batch.
        processes: Number of processes; every method has a multiple of it of batches, for which a question is asked
            again where there are too few.
        finished: Keys of the questions that need no answer.
        carries: Whether questions travel beside what the model reads.
    """

    def __init__(
        self,
        tasks: Sequence[EvaluationTask],
        *,
        ids: Sequence[dict[int, str]],
        chat: ChatFormat,
        protocol: Protocol,
        batch_size: int,
        processes: int = 1,
        finished: Collection[str] = (),
        carries: bool = False,
    ) -> None:
        super().__init__(tasks, chat=chat, protocol=protocol)
        self.ids, self.carries = ids, carries
        self.batches: list[list[Place]] = []
        for method in protocol.methods:
            places = self.places(method)
            left = [place for place in places if self.key(place) not in finished]
            batches = [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
            while places and len(batches) % processes:
                batches.append((batches[-1] if batches else places)[:1])
            self.batches += batches
        if not self.batches:  # Lightning would skip the test, and what reports on it
            first = next(place for method in protocol.methods for place in self.places(method)[:1])
            self.batches = [[first]] * processes

    def places(self, method: Method) -> list[Place]:
        """All questions of a method."""
        return [
            Place(method, number, position, sample, run)
            for number, (task, ids) in enumerate(zip(self.tasks, self.ids, strict=True))
            if method in self.methods(task)
            for position, sample in ids.items()
            for run in range(self.protocol.runs)
        ]

    def key(self, place: Place) -> str:
        """Name of a question."""
        return question_key(self.tasks[place.task].name, place.sample, place.run, place.method)

    def __len__(self) -> int:
        """Number of batches of all processes."""
        return len(self.batches)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A batch: ``inputs`` of the prompts, ``questions``, ``candidates``, ``method`` and ``new_tokens``.

        Raises:
            CorruptRecord: A sample cannot be used.
        """
        return self.batch(self.batches[position])

    def batch(self, places: Sequence[Place]) -> dict[str, Any]:
        """A batch of these questions, all put by one method."""
        asked = [self.ask(place, self.tasks[place.task][place.position]) for place in places]
        prompts = [one.inputs for one in asked]
        return {
            **({"put": [one.put for one in asked]} if self.carries else {}),
            "inputs": join_prompts(prompts, pad_id=self.chat.pad_id, images_in_rows=self.chat.images_in_rows),
            "questions": [one.question for one in asked],
            "candidates": [one.candidates for one in asked],
            "method": places[0].method,
            "new_tokens": self.protocol.new_tokens,
        }

    def describe(self, place: Place) -> str:
        """A question as the model sees it."""
        question, inputs, candidates, _ = self.ask(place, self.tasks[place.task][place.position])
        ids = inputs["input_ids"][0].tolist()
        lines = [
            f"{place.method}, task {question.task}, sample {question.sample}, run {question.run}: {len(ids)} tokens",
            self.chat.mark(ids, [-100] * len(ids)),
        ]
        if candidates:
            lines += [f"  {'*' if n == question.answer else ' '} {text}" for n, text in enumerate(question.options)]
        else:
            right = question.references if question.answer is None else (question.options[question.answer],)
            lines.append(f"  right: {' | '.join(right)}")
        return "\n".join(lines)


def shown_images(images: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """Images as every model gets them, of three channels.

    Raises:
        CorruptRecord: One has more than 8 bits a channel.
    """
    return tuple(flatten_image(image, channels=3, background=BACKGROUND) for image in images)
