"""Batches of conversations about images in the form of one model, from any record source."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from datamodules.allowed import AllowedRecords
from datamodules.base import RecordsDataModule
from datamodules.conversations.batching import Batching
from datamodules.conversations.chat_options import InstructionChatOptions
from datamodules.conversations.instruction_batch import joined_puts
from datamodules.conversations.instruction_dataset import InstructionDataset
from datamodules.conversations.question_template import QuestionTemplate
from datamodules.sampler import GroupSampler, LengthSampler, similar_together
from datamodules.sources.records import CorruptRecord, RecordSource
from sparsight.common.disk.loading import Loading
from sparsight.common.errors import require
from sparsight.common.moved import takes_former_options
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.chat_template import UnusableConversation
from sparsight.lvlm.chat.put import Put
from sparsight.lvlm.model.packing import Positions, packed_positions
from sparsight.lvlm.model.processor import check_template, load_processor

_TRIES = 100  # records
_log = logging.getLogger(__name__)


@takes_former_options
class InstructionDataModule(RecordsDataModule):
    """Conversations as a model's own processor and chat template write them, with the loss on answers alone.

    A training batch is ``{"inputs": keyword arguments of the model's forward pass, "labels": int64 (B, T) with -100
    where there is no loss, "index": int64 (B,) positions in the source, "image_keys": one hash for each image of each
    sample}``. With packing there are fewer rows than samples, and ``inputs`` hold ``position_ids`` and no attention
    mask (call the model with ``use_cache=False``).

    In a validation or test batch ``inputs`` are prompts alone, left-padded, and instead of labels there are
    ``prompt_length`` (B,), and for each item ``candidates`` (token ids), ``texts``, ``answer`` (the right one's number)
    and ``task``; an item without candidates has its answer for the only one.

    The loss covers each answer with the token that ends it. Records that cannot be used are skipped, logged with file
    and position, counted, and end the run above ``allowed.corrupt_share``: missing images, empty answers, answers that
    the template writes otherwise, image tokens beyond ``batching.max_length`` ...

    Args:
        model: Folder or hub id of the model whose processor is used; in the command ``model.base`` if not given.
        train: Where training conversations come from; ``None`` if there is no training.
        val: Where validation items come from; ``None`` takes ``val_share`` of ``train``.
        test: Where test items come from.
        val_share: Share of ``train``, 0 to 1, held out for validation when ``val`` is not given.
        batch_size: Conversations a batch and process; the global batch is this times the number of processes.
        num_workers: Loader processes; 0 loads in the main process.
        batching: How they are cut, chosen and put together.
        seed: Seed of order, split and ``limit``.
        limit: Use at most this many records of each of train, val and test, drawn with the seed.
        allowed: How much of the records may be unusable.
        chat: How records become conversations, and the processor writes these.
        loading: How the processor is read.

    Attributes:
        shortened: Records of each split that lost the end of their text, with the number of tokens.

    Raises:
        ValueError: No model, an option is out of range, or two of them contradict each other.
    """

    wing = "image-text"
    follows: ClassVar[Mapping[str, str]] = {"model": "base"}
    names: ClassVar[Sequence[str]] = ("model",)

    def __init__(
        self,
        model: str | None = None,
        train: RecordSource | None = None,
        val: RecordSource | None = None,
        test: RecordSource | None = None,
        val_share: float = 0.0,
        batch_size: int = 8,
        num_workers: int = 0,
        batching: Batching = Batching(),
        seed: int = 0,
        limit: int | None = None,
        allowed: AllowedRecords = AllowedRecords(),
        chat: InstructionChatOptions = InstructionChatOptions(),
        loading: Loading = Loading(),
    ) -> None:
        super().__init__(
            train=train,
            val=val,
            test=test,
            val_share=val_share,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            limit=limit,
            allowed=allowed,
        )
        self.model = self._named_model("model", model)
        self.template = QuestionTemplate(chat.question, chat.answer)
        self.max_length = batching.max_length
        self.packing = batching.packing
        self._positions: Positions | None = None
        self.chat_options = chat
        self.pretrained_options = loading.source
        self.alike = "similar length" if batching.length_grouping else ""
        self.shortened: dict[str, dict[int, int]] = {name: {} for name in self.sources}
        self.chat: ChatFormat | None = None

    def check_paths(self) -> None:
        """See that the files of the sources are there, and that of a chat template."""
        super().check_paths()
        check_template(self.chat_options.template)

    def prepare_data(self) -> None:
        """Download what sources and processor need, in one process a machine."""
        super().prepare_data()
        self.load_processor()

    def setup(self, stage: str | None = None) -> None:
        """Load the processor, open the sources that the stage needs and draw the splits.

        Raises:
            FileNotFoundError: If a source's files or the model are missing.
            ValueError: If the processor cannot serve, the model's samples cannot be packed, the stage has no source or
                a split has no records.
        """
        from transformers import AutoConfig

        if self.chat is None:
            if self.packing:
                self._positions = packed_positions(AutoConfig.from_pretrained(self.model, **self.pretrained_options))
            self.chat = ChatFormat(
                self.load_processor(), options=self.chat_options.template_kwargs, reasoning=self.chat_options.reasoning
            )
            if self.chat_options.processor_options:
                self._try_options(self.chat)
        super().setup(stage)

    def load_processor(self) -> Any:
        """The processor as samples are made with it, and as exports hold it.

        Raises:
            FileNotFoundError: There is no such model, or no such file of a chat template.
            ValueError: The model has no processor, or the processor no such option.
        """
        return load_processor(self.model, **self.chat_options.processor_changes, **self.pretrained_options)

    def _try_options(self, chat: ChatFormat) -> None:
        try:
            _ = chat.images_in_rows  # prepares two small images
        except UnusableConversation as error:
            raise ValueError(f"{error}; check chat.processor_options {self.chat_options.processor_options}") from error

    def describe(self, split: str, index: int) -> str:
        """A record as the model sees it: answers that carry the loss in ``[[ ]]``, or the candidates of a prompt.

        Args:
            split: ``train``, ``val`` or ``test``.
            index: Position of the record in the source of the split.

        Raises:
            CorruptRecord: The record cannot be used.
            ValueError: The split is not set up, or its source has no such record.
        """
        return f"{split} record {index}, {self._set_up(split, index).describe(index)}"

    def shown(self, split: str, index: int) -> dict[str, Any]:
        """A record as plain data, see :meth:`InstructionDataset.shown`; errors are those of ``describe``."""
        return {"title": f"{split} record {index}"} | self._set_up(split, index).shown(index)

    def _set_up(self, split: str, index: int) -> InstructionDataset:
        if split not in self.datasets:
            raise ValueError(f"there is no split {split!r}, only {sorted(self.datasets)}; call setup before describe")
        dataset: InstructionDataset = self.datasets[split]
        require(0 <= index < len(dataset.source), "index", index, f"0 to {len(dataset.source) - 1}")
        return dataset

    def example(self) -> dict[str, Any] | None:
        """Model inputs of a sample with an image, the same on all processes; none if no split has any that serves."""
        for dataset in self.datasets.values():
            images = (index for index in _spread(dataset.indices) if _extent(dataset.source, index)[0] > 0)
            for index in islice(images, _TRIES):
                with suppress(CorruptRecord):
                    inputs: dict[str, Any] = dataset.sample(index)["inputs"]
                    return inputs
        return None

    def carry_questions(self) -> None:
        """Let evaluation batches hold their questions as they were put, from now on."""
        for dataset in self.datasets.values():
            dataset.carries = True

    def joined(self, puts: Sequence[Put]) -> dict[str, Any]:
        """What a batch holds of questions that are put anew."""
        assert self.chat is not None
        return joined_puts(puts, self.chat)

    def _make_dataset(
        self, name: str, source: RecordSource, indices: np.ndarray, *, max_corrupt: int
    ) -> InstructionDataset:
        assert self.chat is not None
        extents_N2 = np.zeros((len(indices), 2), dtype=np.int64)
        if self.alike:
            extents_N2 = np.array([_extent(source, int(index)) for index in indices])
        lengths_N = np.argsort(np.lexsort((extents_N2[:, 1], extents_N2[:, 0])))  # an image is longer than any text
        if self.alike and name != "train":
            order_N = similar_together(lengths_N, block=self.batch_size * self._world, seed=self.seed)
            indices, extents_N2, lengths_N = indices[order_N], extents_N2[order_N], lengths_N[order_N]
        return InstructionDataset(
            source,
            indices=indices,
            groups=(extents_N2[:, 0] > 0).astype(np.int64),
            lengths=lengths_N,
            max_corrupt=max_corrupt,
            chat=self.chat,
            template=self.template,
            evaluate=name != "train",
            max_length=self.max_length,
            pack=self._positions,
        )

    def _group_sampler(self, dataset: InstructionDataset, *, global_batch: int) -> GroupSampler:
        options: dict[str, Any] = {"global_batch": global_batch, **self._share()}
        return LengthSampler(dataset.groups.tolist(), lengths=dataset.lengths.tolist(), **options)

    def _receive(self, name: str, batch: dict[str, Any], last: bool) -> dict[str, Any]:
        found, dataset = self.shortened[name], self.datasets[name]
        found |= batch.pop("cut")
        if last and found:
            _log.warning(
                "%d of %d %s records have more than batching.max_length=%d tokens and lost the end of their text",
                *(len(found), len(dataset), name, self.max_length),
            )
        return super()._receive(name, batch, last)


def _spread(indices: np.ndarray) -> Iterator[int]:
    """All of them, wide apart at first: those without images may stand together."""
    step = max(1, len(indices) // 100)
    return (int(index) for start in range(step) for index in indices[start::step])


def _extent(source: RecordSource, index: int) -> tuple[int, int]:
    try:
        return source.extent(index)
    except CorruptRecord:  # found again, counted and reported when it is needed
        return 0, 0
