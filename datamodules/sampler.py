"""The order in which records are seen: a function of (seed, epoch) that can start anywhere in the epoch.

With it a stopped run goes on with the very next batch, and W processes with B/W records each see the same global
batches as one process with B.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler


def derive_seed(*parts: int) -> int:
    """63-bit seed that depends on every part, so that (0, 1) and (1, 0) have nothing in common."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ResumableSampler(DistributedSampler):
    """Indices of one process for one epoch.

    The global order is cut as 0, W, 2W, ... for process 0 and so on, so any run of consecutive batches covers the same
    records whatever the number of processes. Nothing is repeated to make lengths equal.

    Args:
        dataset: What is sampled; only its length is used.
        num_replicas: Number of processes W.
        rank: Number of this process.
        shuffle: Draw a new order from (seed, epoch); otherwise the order of the data set.
        seed: Seed of the order.
        drop_last: Leave out the last ``len(dataset) % num_replicas`` records, so that all processes get equally many.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Start at the first index of an epoch."""
        self.start(epoch)

    def start(self, epoch: int, *, skip: int = 0) -> None:
        """Set the epoch, and how many of this process's indices the next iteration leaves out."""
        self.epoch = epoch
        self.skip = skip

    def __iter__(self) -> Iterator[int]:
        """Indices of this process, after the first ``skip``."""
        return iter(self._indices()[self.skip :])

    def __len__(self) -> int:
        """Number of indices of this process in a whole epoch, skipped ones included."""
        total = len(self.dataset)  # type: ignore[arg-type]
        if self.drop_last:
            return total // self.num_replicas
        return len(range(self.rank, total, self.num_replicas))

    def _indices(self) -> list[int]:
        return self._global_order()[self.rank :: self.num_replicas][: len(self)]

    def _global_order(self) -> list[int]:
        total = len(self.dataset)  # type: ignore[arg-type]
        if not self.shuffle:
            return list(range(total))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return torch.randperm(total, generator=generator).tolist()


class GroupSampler(ResumableSampler):
    """Indices in which every global batch comes from one group, such as the images of one size.

    Each epoch shuffles every group, cuts it into batches, shuffles those, and deals each out to the processes. What
    does not fill a last batch of its group is left out, by chance another part in every epoch.

    Args:
        groups: Group of every sample.
        global_batch: Samples of a batch over all processes.
        num_replicas: Number of processes W; it divides ``global_batch``.
        rank: Number of this process.
        seed: Seed of the order.
    """

    def __init__(
        self, groups: Sequence[int], *, global_batch: int, num_replicas: int = 1, rank: int = 0, seed: int = 0
    ) -> None:
        super().__init__(groups, num_replicas=num_replicas, rank=rank, seed=seed)
        self.global_batch = global_batch
        self.members = [torch.nonzero(torch.as_tensor(groups) == g).flatten() for g in sorted(set(groups))]

    def __len__(self) -> int:
        """Number of indices of this process in a whole epoch, skipped ones included."""
        batches = sum(len(members) // self.global_batch for members in self.members)
        return batches * self.global_batch // self.num_replicas

    def _global_order(self) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        batches = []
        for members in self.members:
            arranged = self._arranged(members[torch.randperm(len(members), generator=generator)])
            batches += [batch for batch in arranged.split(self.global_batch) if len(batch) == self.global_batch]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [index for batch in order for index in batches[batch].tolist()]

    def _arranged(self, shuffled: Tensor) -> Tensor:
        return shuffled


class LengthSampler(GroupSampler):
    """Indices in which every global batch comes from one group and holds samples of similar length.

    Each epoch shuffles every group, cuts it into pools of some batches and sorts each pool by length.

    Args:
        groups: Group of every sample.
        lengths: Length of every sample, in any unit.
        pool: Batches of a pool: more make lengths more alike, fewer make the order more random.
        options: As for ``GroupSampler``.
    """

    def __init__(self, groups: Sequence[int], *, lengths: Sequence[int], pool: int = 32, **options: Any) -> None:
        super().__init__(groups, **options)
        self.lengths = torch.as_tensor(lengths)
        self.pool = pool

    def _arranged(self, shuffled: Tensor) -> Tensor:
        full = len(shuffled) // self.global_batch * self.global_batch
        pools = shuffled[:full].split(self.pool * self.global_batch)  # what is left out is so by chance, not by length
        return torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])


def similar_together(lengths: np.ndarray, *, block: int, seed: int) -> np.ndarray:
    """Order of all samples in which every block of them has similar lengths, and whole blocks come at random.

    Args:
        lengths: Length of every sample, in any unit.
        block: Samples of a block; what is left when blocks are full comes last.
        seed: Seed of the order of the blocks.
    """
    ranked = np.argsort(lengths, kind="stable")
    blocks = np.split(ranked, range(block, len(ranked), block))
    rest = [blocks.pop()] if len(blocks[-1]) < block else []
    drawn = np.random.default_rng(derive_seed(seed)).permutation(len(blocks))
    return np.concatenate([*(blocks[number] for number in drawn), *rest])


@runtime_checkable
class InEpochs(Protocol):
    """A data set whose samples differ from epoch to epoch."""

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch that random changes depend on; called before workers start."""
        ...


class ReportingLoader(DataLoader):
    """Loader that counts batches and passes each through a function in the main process.

    Attributes:
        epoch_batches: Batches after which the caller ends an epoch; ``None`` means all of them.
        receive: Called with each batch and whether it ends the epoch; its result is delivered.
        waited: Seconds that the main process has spent waiting for batches, of all epochs.
    """

    epoch_batches: int | None = None
    receive: Callable[[Any, bool], Any] | None = None
    waited = 0.0
    _delivered = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Deliver the batches; no worker starts before the first one is asked for."""
        asked = time.perf_counter()
        self._begin()
        for batch in self._batches():
            self._delivered += 1
            self.waited += time.perf_counter() - asked
            yield batch if self.receive is None else self.receive(batch, self._epoch_ended())
            asked = time.perf_counter()

    def _batches(self) -> Iterator[Any]:
        return super().__iter__()

    def _begin(self) -> None:
        self._delivered = 0

    def _epoch_ended(self) -> bool:
        return self._delivered >= (len(self) if self.epoch_batches is None else self.epoch_batches)


class ResumableLoader(ReportingLoader):
    """Loader that remembers how far into which epoch it is, in the form that Lightning's checkpoints keep.

    It starts with the epoch that was announced by ``set_epoch`` or loaded with its state, and counts on by itself: when
    Lightning resumes at the end of an epoch, it may announce a number that is off by one, or leave an epoch after one
    batch. An epoch that was left is taken up again. The state counts global samples, so a run may resume with another
    number of processes.

    Attributes:
        upcoming: The batch after the one delivered last, so that what it needs can be made ready; none after the last.
    """

    upcoming: Any = None
    _epoch: int | None = None
    _loaded: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of global samples delivered in it; a finished epoch is the start of the next."""
        epoch = self._epoch or 0
        if self._epoch_ended():
            return {"epoch": epoch + 1, "samples": 0}
        return {"epoch": epoch, "samples": self._delivered * self._global_batch()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at a saved position.

        Raises:
            ValueError: If the position is not a whole number of batches of the present size.
        """
        if state["samples"] % self._global_batch():
            raise ValueError(
                f"the checkpoint stands at sample {state['samples']} of its epoch, which is not a multiple of the "
                f"global batch {self._global_batch()}; resume with the batch size and number of processes it had"
            )
        self._loaded = (state["epoch"], state["samples"] // self._global_batch())

    def _batches(self) -> Iterator[Any]:
        batches = super()._batches()
        self.upcoming = next(batches, None)
        while self.upcoming is not None:
            batch, self.upcoming = self.upcoming, next(batches, None)
            yield batch

    def _begin(self) -> None:
        sampler = self.sampler
        if not isinstance(sampler, ResumableSampler):  # Lightning's overfit_batches puts its own in place
            self._delivered = 0
            return
        if self._loaded is not None:
            (self._epoch, self._delivered), self._loaded = self._loaded, None
        elif self._epoch is None:
            self._epoch = sampler.epoch
        elif self._epoch_ended():
            self._epoch, self._delivered = self._epoch + 1, 0
        assert self.batch_size is not None
        sampler.start(self._epoch, skip=self._delivered * self.batch_size)
        if isinstance(self.dataset, InEpochs):
            self.dataset.start_epoch(self._epoch)

    def _global_batch(self) -> int:
        assert self.batch_size is not None
        shares = self.sampler.num_replicas if isinstance(self.sampler, DistributedSampler) else 1
        return self.batch_size * shares


def epoch_batches(batches: int, limit: int | float | None) -> int:
    """Batches of an epoch under Lightning's ``limit_train_batches``: a number, a share (float), or no limit."""
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def even_batch_size(total: int, *, batch_size: int, processes: int) -> int:
    """Batch size, as near ``batch_size`` as possible, that gives every process equally many batches.

    Records are dealt without repetition, so shares differ by one; a process with one batch more would wait for ever in
    the first collective operation of its last forward pass.

    Raises:
        ValueError: If there are fewer records than processes.
    """
    share, rest = divmod(total, processes)
    if share == 0:
        raise ValueError(f"{total} records cannot be shared among {processes} processes; use fewer processes")
    if rest == 0 or share % batch_size:
        return batch_size
    return next(size for size in (*range(batch_size, 1, -1), *range(batch_size + 1, share + 2)) if share % size)
