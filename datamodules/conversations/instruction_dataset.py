"""Records as tokenised conversations: samples to train on, or prompts with candidates."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from datamodules.conversations.instruction_batch import collate_chats, collate_questions
from datamodules.conversations.question_template import QuestionTemplate
from datamodules.images.image_dataset import flatten_image
from datamodules.record_dataset import RecordDataset
from datamodules.sources.records import CorruptRecord, RecordSource
from sparsight.evaluation.questions.question import Question
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.chat_template import UnusableConversation
from sparsight.lvlm.chat.conversation import Conversation
from sparsight.lvlm.chat.put import Put
from sparsight.lvlm.model.answer_losses import IGNORED
from sparsight.lvlm.model.packing import Positions

BACKGROUND = 255  # behind transparent pixels


class InstructionDataset(RecordDataset):
    """Chosen records of a source in the form of one model.

    Args:
        source: Opened source.
        indices: Records that belong to the data set, as positions in the source.
        groups: Number of the group of every chosen record.
        lengths: Rank of every chosen record by length.
        max_corrupt: Number of unusable records that is tolerated.
        chat: The model's form.
        template: Asks about records that have no conversation.
        evaluate: Make prompts with candidates, not samples to train on.
        max_length: Most tokens of a sample; ``None`` for any number.
        pack: How positions are counted where several samples are put into rows of ``max_length`` tokens; ``None`` for
            one sample a row.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        indices: np.ndarray,
        groups: np.ndarray,
        lengths: np.ndarray,
        max_corrupt: int,
        chat: ChatFormat,
        template: QuestionTemplate,
        evaluate: bool,
        max_length: int | None,
        pack: Positions | None,
    ) -> None:
        super().__init__(source, indices=indices, groups=groups, max_corrupt=max_corrupt)
        self.lengths = lengths
        self.chat = chat
        self.template = template
        self.evaluate = evaluate
        self.max_length = max_length
        options: dict[str, Any] = {"pad_id": chat.pad_id, "images_in_rows": chat.images_in_rows}
        packing: dict[str, Any] = {} if pack is None else {"pack_to": max_length, "positions": pack}
        train = partial(collate_chats, **options, **packing)
        self._collate = partial(collate_questions, **options) if evaluate else train
        self.carries = False  # whether questions travel beside what the model reads

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch of samples, or of prompts."""
        return self._collate(samples)

    def sample(self, index: int, *, group: int = 0) -> dict[str, Any]:
        """One conversation as tokens and pixels."""
        record = self.source[index]
        conversation = self.template.conversation(record, self.source.classes)
        images = tuple(flatten_image(image, channels=3, background=BACKGROUND) for image in conversation.images)
        conversation = replace(conversation, images=images)
        try:
            made = self._question(conversation, record.id, index) if self.evaluate else self._chat(conversation)
        except UnusableConversation as error:
            raise CorruptRecord(f"{record.id}: {error}") from error
        return made | {"id": record.id, "image_keys": [image_key(image) for image in images]}

    def _chat(self, conversation: Conversation) -> dict[str, Any]:
        encoded = self.chat.encode(conversation, max_length=self.max_length)
        return {"inputs": encoded.inputs, "labels": encoded.labels_T, "cut": encoded.cut}

    def _question(self, conversation: Conversation, id: str, index: int) -> dict[str, Any]:
        put = Put.weighed(conversation, max_length=self.max_length)
        inputs, candidates = put.encode(self.chat)
        right = conversation.question_and_answer[1].text
        return {
            **({"put": put} if self.carries else {}),
            "inputs": inputs,
            "candidates": candidates,
            "question": Question(
                task=conversation.task,
                sample=id,
                images=len(conversation.images),
                options=tuple(text.strip() for text in conversation.candidates or (right,)),
                answer=conversation.answer or 0,
                position=index,
            ),
            "cut": 0,
        }

    def describe(self, index: int) -> str:
        """A record as the model sees it: answers that carry the loss in ``[[ ]]``, or the candidates of a prompt.

        Raises:
            CorruptRecord: The record cannot be used.
        """
        shown = self.shown(index)
        text = "".join(f"[[{part}]]" if learnt else part for part, learnt in shown["parts"])
        options = (f"  {'*' if n == shown['right'] else ' '} {text}" for n, text in enumerate(shown["options"]))
        return "\n".join([f"{shown['id']}: {shown['facts']}", text, *options])

    def shown(self, index: int) -> dict[str, Any]:
        """A record as plain data: ``parts`` of the text, each with whether it carries the loss, and what is beside it.

        Raises:
            CorruptRecord: The record cannot be used.
        """
        sample = self.sample(index)
        ids = sample["inputs"]["input_ids"][0].tolist()
        labels = sample["labels"].tolist() if "labels" in sample else [IGNORED] * len(ids)
        facts = [f"{len(sample['image_keys'])} images", f"{len(ids)} tokens"]
        if not self.evaluate:
            facts.append(f"{sum(label >= 0 for label in labels)} of them with loss")
        if sample["cut"]:
            facts.append(f"{sample['cut']} more cut off")
        question: Question | None = sample.get("question")
        return {
            "id": sample["id"],
            "facts": ", ".join(facts),
            "parts": self.chat.spans(ids, labels),
            "options": [] if question is None else list(question.options),
            "right": None if question is None else question.answer,
        }


def image_key(image: Image.Image) -> str:
    """Hash of an image's size and pixels, by which a cache of vision features knows it."""
    found = hashlib.blake2b(f"{image.mode}{image.size}".encode(), digest_size=16)
    found.update(image.tobytes())
    return found.hexdigest()
