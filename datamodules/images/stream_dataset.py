"""Endless training samples from a stream of records, dealt to processes and workers, and resumed where they stopped.

The consumers (every worker of every process) share out the shards anew in each pass over the data. A consumer reads its
shards in blocks, each of which it shuffles. Where it stands is thus a few numbers: the first record of its block, and
how much of the block has been delivered; resuming reads that one block again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.images.image_dataset import ImageTransform, collate, flips
from datamodules.record_dataset import TooManyCorruptRecords
from datamodules.sampler import ReportingLoader, derive_seed
from datamodules.sources.records import CorruptRecord, RecordStream

SHARD_BITS = 32  # a record's id is its shard's number, then its position in the shard
MOST_CORRUPT_IN_A_ROW = 100


def place_of(index: int) -> tuple[int, int]:
    """Shard and position in it of a record's id."""
    return index >> SHARD_BITS, index & ((1 << SHARD_BITS) - 1)


class Position(NamedTuple):
    """Where a consumer stands: in which pass, from which shard of its own and record its block starts, what is done."""

    epoch: int = 0
    place: int = 0
    record: int = 0
    done: int = 0


class StreamDataset(IterableDataset):
    """Records of a stream as tensors, without an end; unreadable ones are left out.

    Args:
        stream: Opened stream.
        transform: Makes the tensor.
        flip_seed: Seed of random horizontal flips, or ``None`` for none.
        seed: Decides the order.
        block: Records that are read together and shuffled; 1 keeps the order of the shards' records.
        rank: Number of this process.
        processes: Number of processes.
        workers: Loader processes of each process, at least 1.

    Attributes:
        positions: Where each worker starts.
        turn: The worker whose batch is the next one.

    Raises:
        ValueError: There are fewer shards than consumers.
    """

    def __init__(
        self,
        stream: RecordStream,
        *,
        transform: ImageTransform,
        flip_seed: int | None,
        seed: int,
        block: int,
        rank: int,
        processes: int,
        workers: int,
    ) -> None:
        self.stream = stream
        self.transform = transform
        self.flip_seed = flip_seed
        self.seed = seed
        self.block = block
        self.rank, self.processes, self.workers = rank, processes, workers
        self.positions = [Position()] * workers
        self.turn = 0
        if stream.shards < processes * workers:
            raise ValueError(
                f"{stream.shards} shards cannot be shared out among {processes} processes with {workers} workers each: "
                "lower num_workers, or cut the data into more files"
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples of this worker from its position on."""
        info = get_worker_info()
        # the loader always asks its first worker first, so the one whose turn it is gets that place
        worker = (self.turn + (0 if info is None else info.id)) % self.workers
        corrupt: dict[int, str] = {}
        unused: list[str] = []
        for position, index, raw in self._records(self.rank * self.workers + worker, self.positions[worker]):
            try:
                if isinstance(raw, CorruptRecord):
                    raise raw
                unused += self.stream.left_out(raw)
                record = self.stream.decode(raw)
                image = self.transform(record.needed_image)
            except CorruptRecord as error:
                where, reason = self.stream.where(*place_of(index)), str(error)
                corrupt[index] = reason if where in reason else f"{where}: {reason}"
                if len(corrupt) > MOST_CORRUPT_IN_A_ROW:
                    told = f"{len(corrupt)} unreadable records in a row: {corrupt[index]}"
                    raise TooManyCorruptRecords(told) from error
                continue
            if self.flip_seed is not None and flips(self.flip_seed, position.epoch, index):
                image = image.flip(-1)
            sample = {"image": image, "label": record.label, "caption": record.caption, "index": index}
            yield sample | {"corrupt": corrupt, "unused": unused, "worker": worker, "position": tuple(position)}
            corrupt, unused = {}, []

    def _records(self, consumer: int, start: Position) -> Iterator[tuple[Position, int, Any]]:
        """Undecoded records with their ids, and the position after each."""
        while True:
            order = self.order(start.epoch)[consumer :: self.processes * self.workers]
            read = 0
            for first, block in self._blocks(order, start):
                generator = torch.Generator().manual_seed(derive_seed(self.seed, consumer, *first[:3]))
                shuffled = torch.randperm(len(block), generator=generator).tolist()
                for done in range(first.done, len(block)):
                    index, raw = block[shuffled[done]]
                    yield first._replace(done=done + 1), index, raw
                read += len(block)
            if not read and start == Position(start.epoch):
                raise ValueError(f"the shards {order} of the stream hold no records")
            start = Position(start.epoch + 1)

    def _blocks(self, order: list[int], start: Position) -> Iterator[tuple[Position, list[tuple[int, Any]]]]:
        block: list[tuple[int, Any]] = []
        first = start
        for place in range(start.place, len(order)):
            position = start.record if place == start.place else 0
            for raw in self.stream.read(order[place], position):
                if not block and first.done == 0:
                    first = Position(start.epoch, place, position)
                block.append(((order[place] << SHARD_BITS) + position, raw))
                position += 1
                if len(block) == self.block:
                    yield first, block
                    block, first = [], Position(start.epoch, place, position)
        if block:
            yield first, block

    def order(self, epoch: int) -> list[int]:
        """The shards in the order of a pass over the data."""
        return np.random.default_rng(derive_seed(self.seed, epoch)).permutation(self.stream.shards).tolist()

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, with the worker that made it and where that stands afterwards."""
        unused = [name for sample in samples for name in sample["unused"]]
        last = {name: samples[-1][name] for name in ("worker", "position")}
        return collate(samples) | {"unused": unused} | last


class StreamLoader(ReportingLoader):
    """Loader over a ``StreamDataset`` that knows how far every worker of every process has come.

    Lightning's epochs are so many batches; the stream goes on from one to the next. The state holds the positions of
    all processes, so all of them must ask for it together, as they do for checkpoints.

    Args:
        dataset: The samples.
        batches: Batches of an epoch.
        options: Of the DataLoader.
    """

    dataset: StreamDataset

    def __init__(self, dataset: StreamDataset, *, batches: int, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.batches = batches

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch that are still to come."""
        for batch in super().__iter__():
            yield batch
            if self._delivered >= self.batches:
                return

    def deliver(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take the position out of a batch; ``receive`` calls it."""
        worker = batch.pop("worker")
        self.dataset.positions[worker] = Position(*batch.pop("position"))
        self.dataset.turn = (worker + 1) % self.dataset.workers
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Positions of all processes; a finished epoch is the start of the next."""
        mine = [self.dataset.turn, [tuple(position) for position in self.dataset.positions]]
        everyone = [mine] * self.dataset.processes
        if self.dataset.processes > 1:
            dist.all_gather_object(everyone, mine)
        return {"delivered": 0 if self._epoch_ended() else self._delivered, "processes": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration at a saved position.

        Other numbers of processes or workers share the shards out differently: they begin the next pass.
        """
        dataset = self.dataset
        saved = state["processes"]
        self._delivered = state["delivered"]
        if len(saved) == dataset.processes and len(saved[dataset.rank][1]) == dataset.workers:
            dataset.turn, positions = saved[dataset.rank]
            dataset.positions = [Position(*position) for position in positions]
            return
        passes = 1 + max(position[0] for _, positions in saved for position in positions)
        dataset.turn, dataset.positions = 0, [Position(passes)] * dataset.workers
        rank_zero_warn(
            f"the checkpoint was made with {len(saved)} processes and {len(saved[0][1])} workers each, this run has "
            f"{dataset.processes} and {dataset.workers}: the stream starts pass {passes}, the rest of the last one is "
            "left out"
        )

    def _begin(self) -> None:
        if self._epoch_ended():
            self._delivered = 0
