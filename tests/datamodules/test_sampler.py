"""The order of samples: reproducible, resumable, and the same for any number of processes."""

from __future__ import annotations

import pytest

from datamodules.sampler import ResumableLoader, ResumableSampler, derive_seed, epoch_batches, even_batch_size
from tests.tiny_records import Numbers


def _batches(total: int, *, processes: int, batch: int, epoch: int = 0, done: int = 0) -> list[list[set[int]]]:
    """Batches of every process in one epoch, after ``done`` of them."""
    found = []
    for rank in range(processes):
        sampler = ResumableSampler(range(total), num_replicas=processes, rank=rank, seed=3)
        loader = ResumableLoader(Numbers(total), sampler=sampler, batch_size=batch, drop_last=True, collate_fn=set)
        sampler.set_epoch(epoch)
        loader.load_state_dict({"epoch": epoch, "samples": done * batch * processes})
        found.append(list(loader))
    return found


@pytest.mark.parametrize("total", [23, 24, 25])
def test_two_processes_see_the_global_batches_of_one(total: int) -> None:
    (alone,) = _batches(total, processes=1, batch=4)
    first, second = _batches(total, processes=2, batch=2)
    assert [a | b for a, b in zip(first, second, strict=True)] == alone
    assert len(alone) == total // 4


def test_order_depends_on_seed_and_epoch_and_covers_everything() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ResumableSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 0) != order(0, 0)
    assert sorted(order(5, 2)) == list(range(50))
    assert derive_seed(0, 1) != derive_seed(1, 0) and 0 <= derive_seed(0, 1) < 2**63


def test_skip_leaves_out_the_beginning_and_keeps_the_length() -> None:
    sampler = ResumableSampler(range(10), num_replicas=2, rank=1, seed=0)
    whole = list(sampler)
    sampler.start(0, skip=2)
    assert list(sampler) == whole[2:] and len(sampler) == 5
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_evaluation_repeats_nothing_and_misses_nothing() -> None:
    ranks = [ResumableSampler(range(8), num_replicas=3, rank=r, shuffle=False, drop_last=False) for r in range(3)]
    assert [len(sampler) for sampler in ranks] == [len(list(sampler)) for sampler in ranks]
    assert sorted(index for sampler in ranks for index in sampler) == list(range(8))


def test_even_batch_size_gives_equally_many_batches() -> None:
    for total in range(3, 40):
        for wanted in (1, 2, 3, 4, 8):
            size = even_batch_size(total, batch_size=wanted, processes=3)
            counts = {-(-len(range(rank, total, 3)) // size) for rank in range(3)}
            assert len(counts) == 1, (total, wanted, size)
    assert even_batch_size(10, batch_size=5, processes=1) == 5
    with pytest.raises(ValueError, match="2 records cannot be shared among 3 processes"):
        even_batch_size(2, batch_size=4, processes=3)


def test_state_counts_delivered_batches_and_turns_over_at_the_end() -> None:
    loader = ResumableLoader(Numbers(10), sampler=ResumableSampler(range(10)), batch_size=3, drop_last=True)
    batches = iter(loader)
    next(batches), next(batches)
    assert loader.state_dict() == {"epoch": 0, "samples": 6}
    loader.epoch_batches = 2
    assert loader.state_dict() == {"epoch": 1, "samples": 0}
    with pytest.raises(ValueError, match="global batch 3"):
        loader.load_state_dict({"epoch": 0, "samples": 4})


def test_loaded_position_survives_an_announced_epoch_that_is_off() -> None:
    (fourth,) = _batches(12, processes=1, batch=3, epoch=4)
    sampler = ResumableSampler(range(12), seed=3)
    loader = ResumableLoader(Numbers(12), sampler=sampler, batch_size=3, collate_fn=set)
    loader.load_state_dict({"epoch": 3, "samples": 9})
    sampler.set_epoch(7)
    assert len(list(loader)) == 1
    sampler.set_epoch(8)
    assert list(loader) == fourth


def test_epoch_that_was_left_is_taken_up_again() -> None:
    ((first, second, *_),) = _batches(12, processes=1, batch=3, epoch=2)
    sampler = ResumableSampler(range(12), seed=3)
    loader = ResumableLoader(Numbers(12), sampler=sampler, batch_size=3, collate_fn=set)
    sampler.set_epoch(2)
    assert next(iter(loader)) == first
    sampler.set_epoch(3)
    assert next(iter(loader)) == second


def test_epoch_batches_follows_lightning() -> None:
    assert [epoch_batches(10, limit) for limit in (None, 4, 40, 1.0, 0.25)] == [10, 4, 10, 10, 2]


def test_the_batch_to_come_is_known_and_not_counted() -> None:
    loader = ResumableLoader(Numbers(9), sampler=ResumableSampler(range(9)), batch_size=3, collate_fn=list)
    seen = []
    for batch in loader:
        seen.append((batch, loader.upcoming, loader.state_dict()["samples"]))
    batches = [batch for batch, *_ in seen]
    assert [upcoming for _, upcoming, _ in seen] == [*batches[1:], None]
    assert [samples for *_, samples in seen] == [3, 6, 0]
